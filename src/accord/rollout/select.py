"""Choosing among several responses to one prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

from accord.errors import RewardError
from accord.types import Rollout


def best_of(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The response with the highest score of each group, in the order in which the groups first appear; the first of equals.

    Raises:
        RewardError: a rollout has no score, so nothing can be said of its group.
    """
    best: dict[int, Rollout] = {}
    for index, rollout in enumerate(rollouts):
        if rollout.score is None:
            raise RewardError(
                f"rollout {index} (group {rollout.group}) has no score; score all before choosing the best"
            )
        held = best.get(rollout.group)
        if held is None or rollout.total_score > held.total_score:
            best[rollout.group] = rollout
    return list(best.values())


def best_of_kl_bound(n: int) -> float:
    """Upper bound, in nats, of the KL divergence from the model to the best of n of its responses: log n - (n - 1) / n.

    Often quoted as the divergence itself; it is an upper bound (Beirami et al. 2024, arXiv:2401.01879).

    Args:
        n: responses to choose from, 1 or more.
    """
    if n < 1:
        raise ValueError(f"the best of {n} responses does not exist; n is 1 or more")
    return math.log(n) - (n - 1) / n
