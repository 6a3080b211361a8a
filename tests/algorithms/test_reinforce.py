"""REINFORCE++: what its baseline is the mean of."""

from __future__ import annotations

import pytest

from accord.algorithms import Reinforce
from accord.config import KLConfig, ReinforceConfig
from algorithms.test_ppo import Says, close, rollout

NO_KL = KLConfig(coef=0.0, target=None)
OLD = [0, -1.0, -2.0, 0, -0.5, 0, -0.25]


def prepared(config: ReinforceConfig):
    """A group of two, and one alone; scores 1, 3 | 5, and of tokens 0.5, 1.5 | none | -2."""
    items = [
        rollout(1, [-1.0, -2.0], 1.0, group=0, token_scores=(0.5, 1.5)),
        rollout(1, [-0.5], 3.0, group=0),
        rollout(1, [-0.25], 5.0, group=1, token_scores=(-2.0,)),
    ]
    batch, metrics = Reinforce(config).prepare(items, Says(old_logprobs_T=OLD, ref_logprobs_T=OLD))
    return batch.advantages_T, metrics


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_baseline_is_the_mean_of_the_prompt_s_scores_with_those_of_tokens(scale: float):
    """Totals 3, 3 | 3: each response got what its group got, so the sum of its rewards is 0."""
    advantages_T, metrics = prepared(ReinforceConfig(kl=NO_KL, baseline=True, reward_scale=scale))
    # rewards 0.5, 1.5 + 1 - 3 = -0.5 | 0 | 0; returns 0, -0.5 | 0 | 0
    assert metrics["ppo/advantages/mean"] == pytest.approx(-0.125 * scale)
    deviation = (3 / 64) ** 0.5
    close(advantages_T, [0, 0.125 / deviation, -0.375 / deviation, 0, 0.125 / deviation, 0, 0.125 / deviation])


def test_without_a_baseline_the_returns_are_the_scores_to_come():
    _, metrics = prepared(ReinforceConfig(kl=NO_KL))
    assert metrics["ppo/advantages/mean"] == pytest.approx((3.0 + 2.5 + 3.0 + 3.0) / 4)
