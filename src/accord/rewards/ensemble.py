"""Several reward models as one, trusted where they agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from accord.errors import RewardError
from accord.rewards.protocol import RewardSource, checked_scores, describe
from accord.types import Rollout

SPREAD = "spread"
"""Name of the detail that holds the members' standard deviation."""


def _mean(values: Sequence[float], coef: float) -> float:
    return sum(values) / len(values)


def _least(values: Sequence[float], coef: float) -> float:
    return min(values)


def _uncertainty_weighted(values: Sequence[float], coef: float) -> float:
    return _mean(values, coef) - coef * variance(values)


COMBINE: dict[str, Callable[[Sequence[float], float], float]] = {
    "mean": _mean,
    "min": _least,
    "uwo": _uncertainty_weighted,
}
"""From the members' scores (and the weight of their variance) to one: Coste et al. 2023 (arXiv:2310.02743, section 3.2)."""


def variance(values: Sequence[float]) -> float:
    """Divided by the number of values, as in the paper."""
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


class EnsembleReward:
    """Mean, worst case, or mean minus variance of its members.

    Args:
        members: sources that apply to every response.
        label: name in metrics and errors.
        combine: a key of `COMBINE`.
        coef: weight of the variance in `uwo`.
    """

    def __init__(self, members: Sequence[RewardSource], label: str, combine: str, coef: float) -> None:
        self.members, self.label, self.coef = list(members), label, coef
        self.combine = COMBINE[combine]
        self.details: Mapping[str, Sequence[float | None]] = {}
        """Of the last call of `score`: what each member said, by its number, and their standard deviation."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One score for each rollout; see `RewardSource.score`."""
        columns = [member.score(rollouts) for member in self.members]
        rows: list[list[float]] = []
        for index, row in enumerate(zip(*columns, strict=True)):
            known = [value for value in row if isinstance(value, float)]
            if len(known) < len(row):
                raise RewardError(
                    f"reward {self.label}: a member gave no score of the whole response for "
                    f"{describe(index, rollouts[index])}; each must score all"
                )
            rows.append(known)
        members = {str(number): list(column) for number, column in enumerate(zip(*rows, strict=True), 1)}
        self.details = {**members, SPREAD: [variance(row) ** 0.5 for row in rows]}
        return checked_scores(self.label, [self.combine(row, self.coef) for row in rows], rollouts)
