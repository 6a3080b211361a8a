"""What a reward source is, and the one check that every source's scores pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from threading import Lock
from typing import Any, Protocol, runtime_checkable

from accord.errors import RewardError
from accord.types import Rollout


class RewardSource(Protocol):
    """Scores rollouts."""

    label: str
    """Name in metrics and errors."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One score for each rollout, `None` where the source does not apply.

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
    if hasattr(scores, "tolist"):  # an array or tensor
        scores = scores.tolist()
    if not isinstance(scores, Sequence) or isinstance(scores, (str, bytes)):
        raise RewardError(
            f"reward {source} returned a {type(scores).__name__}; it must return a list of floats or None"
        )
    if len(scores) != len(rollouts):
        raise RewardError(
            f"reward {source} returned {len(scores)} scores for {len(rollouts)} responses; one each is needed"
        )
    return [_checked(source, score, index, rollouts[index]) for index, score in enumerate(scores)]


def _checked(source: str, score: Any, index: int, rollout: Rollout) -> float | None:
    if score is None:
        return None
    if hasattr(score, "tolist"):
        score = score.tolist()
    if not isinstance(score, Real):
        raise RewardError(f"reward {source} gave {score!r} for {describe(index, rollout)}; a score is a number or None")
    if not math.isfinite(score):
        raise RewardError(
            f"reward {source} gave {float(score)} for {describe(index, rollout)}; a score must be finite. "
            "Return None where the reward does not apply"
        )
    return float(score)


def describe(index: int, rollout: Rollout) -> str:
    """A sample, so that a person can find it: number, prompt and response, shortened."""
    return f"sample {index} (prompt {_short(rollout.prompt_text)}, response {_short(rollout.response_text)})"


def _short(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
