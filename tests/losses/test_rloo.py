"""The clipped surrogate of whole responses."""

from __future__ import annotations

import math

import pytest
import torch

from accord.losses.rloo import rloo

OLD = torch.tensor([-3.0, -8.0, -5.0])
ADVANTAGES = torch.tensor([1.0, -0.5, 2.0])


def loss_of(logprobs: torch.Tensor, **given) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    options = {"old_logprobs_N": OLD, "advantages_N": ADVANTAGES, "sequences": torch.tensor(3.0), "clip": 0.2}
    return rloo(logprobs_N=logprobs, **options | given)


def test_at_the_first_step_the_gradient_is_that_of_reinforce() -> None:
    logprobs = OLD.clone().requires_grad_()
    loss, metrics = loss_of(logprobs)
    assert float(loss) == pytest.approx(-2.5 / 3)
    (grad,) = torch.autograd.grad(loss, logprobs)
    torch.testing.assert_close(grad, -ADVANTAGES / 3)  # a step down makes responses with positive advantages likelier
    assert float(metrics["ppo/policy/clipfrac"]) == 0 and float(metrics["ppo/policy/ratio_mean"]) == pytest.approx(1)


def test_clipping_by_hand() -> None:
    # ratios 1.5, 0.5 and 1.1: -1 x 1.2, 0.5 x 0.8 (held: a worse one is pushed no further down), -2 x 1.1
    logprobs = (OLD + torch.tensor([1.5, 0.5, 1.1]).log()).requires_grad_()
    loss, metrics = loss_of(logprobs)
    assert float(loss) == pytest.approx((-1.2 + 0.4 - 2.2) / 3)
    (grad,) = torch.autograd.grad(loss, logprobs)
    torch.testing.assert_close(grad, torch.tensor([0.0, 0.0, -2.2 / 3]))
    assert float(metrics["ppo/policy/clipfrac"]) == pytest.approx(2 / 3)


def test_weights_and_micro_batches() -> None:
    logprobs, weights = OLD + torch.tensor([0.1, -0.1, 0.0]), torch.tensor([1.0, 0.0, 0.25])
    whole, _ = loss_of(logprobs, weights_N=weights)
    assert float(whole) == pytest.approx((-math.exp(0.1) - 0.25 * 2) / 3, rel=1e-6)
    parts = [
        loss_of(logprobs[n], old_logprobs_N=OLD[n], advantages_N=ADVANTAGES[n], weights_N=weights[n])[0]
        for n in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), whole)
