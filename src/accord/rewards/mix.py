"""Several rewards at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accord.errors import RewardError
from accord.rewards.protocol import CountingSource, RewardSource, describe
from accord.types import Rollout


class MixedReward:
    """score = sum of weight x value over the sources that apply to a response."""

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
        scored = self.score_known(rollouts)
        for index, rollout in enumerate(scored):
            if rollout.score is None:
                raise RewardError(
                    f"no reward applies to {describe(index, rollout)}: each of {self.labels} returned None"
                )
        return scored

    def score_known(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The same, with `None` as the score of a response to which no source applies.

        Raises:
            RewardError: a source failed.
        """
        columns = [source.score(rollouts) for source, _ in self.sources]
        scored = []
        for index, rollout in enumerate(rollouts):
            values = {source.label: column[index] for (source, _), column in zip(self.sources, columns, strict=True)}
            weighted = zip((weight for _, weight in self.sources), values.values(), strict=True)
            parts = [weight * value for weight, value in weighted if value is not None and weight != 0]
            scored.append(replace(rollout, score=sum(parts) if parts else None, scores=values))
        return scored

    def take_counts(self) -> dict[str, int]:
        """What the sources counted since they were last asked, by `label/event`."""
        counting = [source for source, _ in self.sources if isinstance(source, CountingSource)]
        return {f"{s.label}/{event}": count for s in counting for event, count in s.take_counts().items()}
