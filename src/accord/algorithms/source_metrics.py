"""What each reward source said, in the metrics of an iteration."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from accord.ops.statistics import SumOverRanks, moments, one_rank
from accord.rewards.ensemble import SPREAD
from accord.types import Rollout


def source_metrics(rollouts: Sequence[Rollout], sum_over_ranks: SumOverRanks = one_rank) -> dict[str, float]:
    """For each source the mean of what it said, and for an ensemble the members' means and the mean spread between them.

    A source that applies to none has no mean: 0 would be a number that nobody measured.
    """
    metrics = {}
    for label in rollouts[0].scores:
        values = [rollout.scores[label] for rollout in rollouts]
        applies = torch.tensor([value is not None for value in values])
        known_N = torch.tensor([0.0 if value is None else value for value in values])
        count, mean, _ = moments(known_N, applies, sum_over_ranks)
        if count > 0:
            source, _, detail = label.rpartition("/")
            metrics[f"env/reward_spread/{source}" if detail == SPREAD else f"env/reward/{label}"] = float(mean)
    return metrics
