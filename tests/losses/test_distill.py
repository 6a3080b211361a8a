"""The mean divergence from a teacher."""

from __future__ import annotations

import pytest
import torch

from accord.losses.distill import distill

MASK = torch.tensor([False, True, True, False, True])


def test_literal() -> None:
    # (0.5 + 1.5 + 4) / 3
    loss, metrics = distill(
        divergences_T=torch.tensor([9.0, 0.5, 1.5, 7.0, 4.0]), mask_T=MASK, tokens=torch.tensor(3.0)
    )
    assert float(loss) == pytest.approx(2.0)
    assert float(metrics["distill/divergence"]) == pytest.approx(2.0)
    assert not metrics["distill/divergence"].requires_grad


def test_a_step_down_brings_the_student_nearer_and_masked_tokens_get_nothing() -> None:
    divergences = torch.tensor([float("nan"), 0.5, 1.5, float("inf"), 4.0], requires_grad=True)
    loss, _ = distill(divergences_T=divergences, mask_T=MASK, tokens=torch.tensor(6.0))
    (grad,) = torch.autograd.grad(loss, divergences)
    torch.testing.assert_close(grad, torch.tensor([0.0, 1 / 6, 1 / 6, 0.0, 1 / 6]))


def test_micro_batches_add_up() -> None:
    divergences = torch.rand(5)
    whole, _ = distill(divergences_T=divergences, mask_T=MASK, tokens=torch.tensor(3.0))
    parts = [
        distill(divergences_T=divergences[part], mask_T=MASK[part], tokens=torch.tensor(3.0))[0]
        for part in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(sum(parts), whole)
