"""What a reward source is, and the one check that every source's scores pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from threading import Lock
from typing import Any, Protocol, TypeAlias, runtime_checkable

from accord.errors import RewardError
from accord.types import Rollout

Score: TypeAlias = float | tuple[float, ...] | None
"""What a source says of one response: a number, one number for each of its tokens, or `None` where it does not apply."""


class RewardSource(Protocol):
    """Scores rollouts."""

    label: str
    """Name in metrics and errors."""

    def score(self, rollouts: Sequence[Rollout]) -> Sequence[Score]:
        """One score for each rollout, or one for each token of its response; `None` where the source does not apply.

        Raises:
            RewardError: the source failed. A failure is never turned into a score.
        """
        ...


@runtime_checkable
class CountingSource(Protocol):
    """A source that counts what it met with, such as code that ran out of time."""

    label: str

    def take_counts(self) -> dict[str, int]:
        """Events since it was last asked, always the same names; 0 for what did not happen."""
        ...


class Counts:
    """Events by name, each from 0; may be counted from several threads."""

    def __init__(self, *names: str) -> None:
        self._lock = Lock()
        self._counts = dict.fromkeys(names, 0)

    def add(self, name: str) -> None:
        """One more."""
        with self._lock:
            self._counts[name] += 1

    def take(self) -> dict[str, int]:
        """What was counted since it was last asked."""
        with self._lock:
            taken = dict(self._counts)
            self._counts = dict.fromkeys(taken, 0)
        return taken


def checked_scores(source: str, scores: Any, rollouts: Sequence[Rollout]) -> list[float | None]:
    """The scores as floats, if there is one for each rollout and each is finite or `None`.

    Raises:
        RewardError: names the source, the sample and what was wrong with its score.
    """
    rows = _rows(source, scores, rollouts)
    return [_whole(source, row, index, rollouts[index]) for index, row in enumerate(rows)]


def checked_rewards(source: str, scores: Any, rollouts: Sequence[Rollout]) -> list[Score]:
    """The same where a rollout may also have a list of scores, one for each token of its response.

    Raises:
        RewardError: see `checked_scores`; or the numbers are not as many as the tokens.
    """
    rows = _rows(source, scores, rollouts)
    return [
        (_tokens if _is_list(row) else _whole)(source, row, index, rollouts[index]) for index, row in enumerate(rows)
    ]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _rows(source: str, scores: Any, rollouts: Sequence[Rollout]) -> list[Any]:
    """What the source gave for each rollout; arrays and tensors as numbers and lists."""
    if hasattr(scores, "tolist"):  # an array or tensor
        scores = scores.tolist()
    if not _is_list(scores):
        raise RewardError(
            f"reward {source} returned a {type(scores).__name__}; it must return a list of floats or None"
        )
    if len(scores) != len(rollouts):
        raise RewardError(
            f"reward {source} returned {len(scores)} scores for {len(rollouts)} responses; one each is needed"
        )
    return [score.tolist() if hasattr(score, "tolist") else score for score in scores]


def _whole(source: str, score: Any, index: int, rollout: Rollout) -> float | None:
    return None if score is None else _number(source, score, describe(index, rollout))


def _tokens(source: str, scores: Sequence[Any], index: int, rollout: Rollout) -> tuple[float, ...]:
    if len(scores) != len(rollout.response_ids):
        raise RewardError(
            f"reward {source} gave {len(scores)} scores for the tokens of {describe(index, rollout)}, which has "
            f"{len(rollout.response_ids)}; a score is a number, one number for each token, or None"
        )
    return tuple(_number(source, score, f"token {t} of {describe(index, rollout)}") for t, score in enumerate(scores))


def _number(source: str, score: Any, what: str) -> float:
    if not isinstance(score, Real):
        raise RewardError(f"reward {source} gave {score!r} for {what}; a score is a number or None")
    try:
        number = float(score)
    except OverflowError:  # a whole number or a fraction
        raise RewardError(f"reward {source} gave a number too large for a float for {what}") from None
    if not math.isfinite(number):
        raise RewardError(
            f"reward {source} gave {number} for {what}; a score must be finite. "
            "Return None where the reward does not apply"
        )
    return number


def with_scores(rollout: Rollout, scores: Mapping[str, Score], weights: Mapping[str, float]) -> Rollout:
    """The rollout with what its sources said: `score` and `token_scores` are the weighted sums, `scores` what each said.

    Args:
        rollout: any.
        scores: of each source that was asked; see `checked_scores`.
        weights: of each source; one of weight 0 is only noted.

    Returns:
        Its `score` is `None` if no source of any weight applies.
    """
    applying = [(weights[label], score) for label, score in scores.items() if score is not None and weights[label] != 0]
    whole = [weight * score for weight, score in applying if not isinstance(score, tuple)]
    by_token = [[weight * x for x in score] for weight, score in applying if isinstance(score, tuple)]
    return replace(
        rollout,
        score=sum(whole) if applying else None,
        token_scores=tuple(sum(at) for at in zip(*by_token, strict=True)) if by_token else None,
        scores={label: sum(score) if isinstance(score, tuple) else score for label, score in scores.items()},
    )


def describe(index: int, rollout: Rollout) -> str:
    """A sample, so that a person can find it: number, prompt and response, shortened."""
    return f"sample {index} (prompt {_short(rollout.prompt_text)}, response {_short(rollout.response_text)})"


def _short(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
