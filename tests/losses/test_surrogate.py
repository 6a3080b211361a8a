"""The surrogate that PPO, GRPO and RLOO share: dual clip, weights."""

from __future__ import annotations

import math

import pytest
import torch

from accord.losses import grpo, ppo_policy, rloo, token_weights
from accord.losses.surrogate import clipped_surrogate


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "held"),
    [
        (2.0, -1.0, 2.0, False),  # below the limit of 3
        (5.0, -1.0, 3.0, True),  # 5 would be far more than 3 |A|
        (5.0, -2.0, 6.0, True),
        (5.0, 1.0, -1.2, True),  # good: the ordinary clip holds it
        (0.5, -1.0, 0.8, True),  # bad and less likely: the ordinary clip
        (1.1, 1.0, -1.1, False),
    ],
)
def test_dual_clip_by_hand(ratio, advantage, loss, held):
    log_ratio = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    losses, is_held = clipped_surrogate(
        log_ratios=log_ratio,
        advantages=torch.tensor([advantage], dtype=torch.float64),
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=3.0,
    )
    assert losses.item() == pytest.approx(loss) and is_held.item() is held
    losses.sum().backward()
    assert (log_ratio.grad.item() == 0.0) is held


def streams(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(12, generator=generator) * 3
    return {
        "logprobs_T": (old + torch.randn(12, generator=generator)).requires_grad_(),
        "old_logprobs_T": old,
        "advantages_T": torch.randn(12, generator=generator),
        "mask_T": torch.rand(12, generator=generator) > 0.3,
    }


def of_ppo(s, weights=None, **options):
    return ppo_policy(**s, tokens=s["mask_T"].sum().float(), clip=0.2, weights_T=weights, **options)


@pytest.mark.parametrize("seed", range(4))
def test_ppo_with_dual_clip_is_grpo_with_dual_clip(seed):
    s = streams(seed)
    tokens = s["mask_T"].sum().float()
    weights = token_weights(
        mask_T=s["mask_T"],
        sequence_T=torch.zeros(12, dtype=torch.long),
        aggregate="token",
        tokens=tokens,
        sequences=tokens,
        longest=1,
    )
    one, metrics = of_ppo(s, dual_clip=1.3)
    other, expected = grpo(**s, weights_T=weights, tokens=tokens, clip_low=0.2, clip_high=0.2, dual_clip=1.3)
    plain, _ = of_ppo(s)
    assert one.item() == pytest.approx(other.item(), rel=1e-6) and one < plain
    assert metrics["ppo/policy/clipfrac"] == expected["ppo/policy/clipfrac"]


def test_weights_of_1_change_no_bit_and_others_scale_each_token():
    s = streams()
    plain, weighted = of_ppo(s)[0], of_ppo(s, torch.ones(12))[0]
    gradients = [torch.autograd.grad(loss, s["logprobs_T"])[0] for loss in (plain, weighted)]
    assert torch.equal(plain, weighted) and torch.equal(*gradients)
    weights = torch.arange(12.0).masked_fill(~s["mask_T"], float("nan"))
    (scaled,) = torch.autograd.grad(of_ppo(s, weights)[0], s["logprobs_T"])
    torch.testing.assert_close(scaled, gradients[0] * torch.arange(12.0))


def test_weights_of_whole_responses():
    s = {"logprobs_N": torch.tensor([-0.9, -1.5]), "old_logprobs_N": torch.tensor([-1.0, -2.0])}
    s |= {"advantages_N": torch.tensor([2.0, 1.0]), "sequences": torch.tensor(2.0)}
    # (0.5 * -2 * 1.10517 + 2 * -1 * 1.2) / 2
    loss, _ = rloo(**s, clip=0.2, weights_N=torch.tensor([0.5, 2.0]))
    assert loss.item() == pytest.approx(-1.7525855, rel=1e-6)
