"""The best of several responses."""

from __future__ import annotations

import math

import pytest
import torch

from accord.errors import RewardError
from accord.rollout.select import best_of, best_of_kl_bound
from accord.types import Rollout


def rollout(group: int, score: float | None, text: str = "", **more) -> Rollout:
    return Rollout((1,), (2,), (-0.5,), "stop", "p", text, group=group, score=score, **more)


def test_the_best_of_each_group_in_the_order_of_the_groups():
    rollouts = [
        rollout(4, -2.0),
        rollout(4, -1.0),
        rollout(1, 0.5),
        rollout(4, -3.0),
        rollout(1, 0.25),
        rollout(7, -9.0),
    ]
    assert best_of(rollouts) == [rollouts[1], rollouts[2], rollouts[5]]
    assert best_of([]) == []


def test_the_first_of_equals():
    rollouts = [rollout(0, 1.0, "first"), rollout(0, 1.0, "second")]
    assert best_of(rollouts)[0].response_text == "first"


def test_scores_of_tokens_count():
    rollouts = [rollout(0, 1.0), rollout(0, 0.0, token_scores=(2.0,)), rollout(0, 3.0, token_scores=(-2.5,))]
    assert best_of(rollouts) == rollouts[1:2]


def test_a_response_without_a_score_is_not_passed_over():
    with pytest.raises(RewardError, match=r"rollout 1 \(group 3\) has no score"):
        best_of([rollout(3, 1.0), rollout(3, None)])


def test_bound_by_hand():
    assert best_of_kl_bound(1) == 0
    assert best_of_kl_bound(2) == pytest.approx(0.1931, abs=1e-4)
    assert best_of_kl_bound(8) == pytest.approx(1.2044, abs=1e-4)
    with pytest.raises(ValueError, match="1 or more"):
        best_of_kl_bound(0)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_bound_holds_and_is_reached_by_many_equally_likely_responses(n):
    """The exact divergence of k equally likely responses with different scores: P(best is the i-th) = (i^n - (i-1)^n) / k^n."""
    for k in (2, 10, 10_000):
        i = torch.arange(1, k + 1, dtype=torch.float64)
        p = (i / k) ** n - ((i - 1) / k) ** n
        exact = float((p * (p * k).log()).sum())
        assert exact <= best_of_kl_bound(n) + 1e-12
        assert k == 2 or math.isclose(exact, best_of_kl_bound(n), rel_tol=0.02 if k > 10 else 0.6)
