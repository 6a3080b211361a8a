"""What each source said, by hand."""

from __future__ import annotations

import pytest

from accord.algorithms.source_metrics import source_metrics
from accord.types import Rollout


def scored(**scores: float | None) -> Rollout:
    return Rollout((1,), (2,), (0.0,), "stop", "p", "r", score=1.0, scores=scores)


def test_means_over_those_that_apply_and_the_share_that_do_not():
    rollouts = [scored(a=1.0, b=None, c=None), scored(a=2.0, b=3.0, c=None), scored(a=6.0, b=None, c=None)]
    assert source_metrics(rollouts) == pytest.approx(
        {"env/reward/a": 3.0, "env/reward/b": 3.0, "env/reward_none/b": 2 / 3, "env/reward_none/c": 1.0}
    )


def test_over_two_ranks():
    """Each rank has one; the other's count 1, its sum 5 and its squares are added."""
    others = iter([1.0, 1.0, 5.0, 0.0])
    assert source_metrics([scored(a=1.0)], lambda mine: mine + next(others)) == {"env/reward/a": 3.0}
