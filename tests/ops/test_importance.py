"""Importance weights: by hand, by identity, and that they give the gradient of the policy that learns."""

from __future__ import annotations

import math

import pytest
import torch

from accord.batch import TokenBatch
from accord.losses import ppo_policy
from accord.ops.importance import importance_weights

BATCH = TokenBatch.from_sequences([[1, 2, 3], [4, 5]], [[False, True, True], [False, True]])
SAMPLER = torch.tensor([9.0, -1.0, -2.0, 9.0, -1.0])
OLD = SAMPLER + torch.tensor([5.0, math.log(3.0), math.log(0.5), 5.0, math.log(0.25)])
"""Ratios 3 and 1/2, product 3/2; and 1/4. Off the targets is garbage."""


@pytest.mark.parametrize(
    ("how", "cap", "level", "weights"),
    [
        ("truncate", 2.0, "token", [0, 2.0, 0.5, 0, 0.25]),
        ("truncate", 9.0, "token", [0, 3.0, 0.5, 0, 0.25]),
        ("mask", 2.0, "token", [0, 0, 0.5, 0, 0]),
        ("mask", 5.0, "token", [0, 3.0, 0.5, 0, 0.25]),
        ("truncate", 1.2, "sequence", [0, 1.2, 1.2, 0, 0.25]),
        ("mask", 2.0, "sequence", [0, 1.5, 1.5, 0, 0]),
    ],
)
def test_by_hand(how, cap, level, weights):
    got_T, ratio_T = importance_weights(BATCH, OLD, SAMPLER, how, cap, level)
    torch.testing.assert_close(got_T, torch.tensor(weights, dtype=torch.float32))
    expected = [0, 3.0, 0.5, 0, 0.25] if level == "token" else [0, 1.5, 1.5, 0, 0.25]
    torch.testing.assert_close(ratio_T, torch.tensor(expected))


@pytest.mark.parametrize("how", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_same_log_probabilities_weigh_exactly_1(how, level):
    weights_T, _ = importance_weights(BATCH, OLD, OLD.clone(), how, 2.0, level)
    assert weights_T.tolist() == [0, 1, 1, 0, 1]


def test_they_carry_no_gradient_and_stay_finite():
    old = OLD.clone().requires_grad_()
    weights_T, ratio_T = importance_weights(BATCH, old, SAMPLER - 1e4, "truncate", 2.0, "sequence")
    assert not weights_T.requires_grad and bool(torch.isfinite(ratio_T).all())


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="unknown correction 'tis': truncate, mask"):
        importance_weights(BATCH, OLD, SAMPLER, "tis", 2.0, "token")


def bandit_gradient(logits: torch.Tensor, drawn_from: torch.Tensor, correct: bool) -> torch.Tensor:
    """Expected gradient of PPO's loss over one-token responses drawn from some policy, action by action: no sampling noise."""
    rewards = torch.tensor([1.0, -0.5, 2.0, 0.25], dtype=torch.float64)
    total = torch.zeros(4, dtype=torch.float64)
    for action in range(4):
        now = logits.clone().requires_grad_()
        logprob_T = torch.stack([torch.zeros((), dtype=torch.float64), torch.log_softmax(now, 0)[action]])
        old_T = logprob_T.detach()
        sampler_T = torch.stack([torch.zeros((), dtype=torch.float64), torch.log_softmax(drawn_from, 0)[action]])
        batch = TokenBatch.from_sequences([[0, action]], [[False, True]])
        weights_T = importance_weights(batch, old_T, sampler_T, "truncate", 1e9, "token")[0] if correct else None
        loss, _ = ppo_policy(
            logprobs_T=logprob_T,
            old_logprobs_T=old_T,
            advantages_T=torch.stack([rewards[action] * 0, rewards[action]]),
            mask_T=batch.target_mask_T,
            tokens=torch.tensor(1.0),
            clip=0.2,
            weights_T=weights_T,
        )
        loss.backward()
        total += torch.softmax(drawn_from, 0)[action] * now.grad
    return total


def test_rollouts_of_a_lagging_policy_give_the_gradient_of_the_one_that_learns():
    """A bandit in closed form: d E[r] / d logit_v = p_v (r_v - E[r])."""
    logits = torch.tensor([0.3, -1.0, 0.5, 0.0], dtype=torch.float64)
    lagging = torch.tensor([1.0, 0.4, -0.7, 0.2], dtype=torch.float64)
    p, rewards = torch.softmax(logits, 0), torch.tensor([1.0, -0.5, 2.0, 0.25], dtype=torch.float64)
    expected = -p * (rewards - (p * rewards).sum())
    torch.testing.assert_close(bandit_gradient(logits, logits, correct=False), expected)
    torch.testing.assert_close(bandit_gradient(logits, lagging, correct=True), expected)
    assert not torch.allclose(bandit_gradient(logits, lagging, correct=False), expected, rtol=0.1)
