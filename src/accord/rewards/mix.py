"""Several rewards at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from accord.errors import RewardError
from accord.rewards.protocol import RewardSource, describe, with_scores
from accord.types import Rollout


class MixedReward:
    """score = sum of weight x value over the sources that apply to a response; scores of single tokens are added by token.

    A source may have `details`: more values of its last call, by name. They are kept in `scores` as `label/name`, and weigh
    nothing.
    """

    def __init__(self, sources: Sequence[tuple[RewardSource, float]]) -> None:
        self.sources = list(sources)

    @property
    def labels(self) -> list[str]:
        """Names of the sources."""
        return [source.label for source, _ in self.sources]

    def score(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts with `score` and `scores` set.

        Raises:
            RewardError: a source failed, or no source applies to a response.
        """
        columns = [source.score(rollouts) for source, _ in self.sources]
        weights = {source.label: weight for source, weight in self.sources}
        scored = []
        for index, rollout in enumerate(rollouts):
            values = {source.label: column[index] for (source, _), column in zip(self.sources, columns, strict=True)}
            found = with_scores(rollout, values, weights)
            if found.score is None:
                raise RewardError(
                    f"no reward applies to {describe(index, rollout)}: each of {self.labels} returned None"
                )
            told: dict[str, float | None] = {}
            for source, _ in self.sources:
                details: Mapping[str, Sequence[float | None]] = getattr(source, "details", {})
                told |= {f"{source.label}/{name}": column[index] for name, column in details.items()}
            scored.append(replace(found, scores={**found.scores, **told}))
        return scored
