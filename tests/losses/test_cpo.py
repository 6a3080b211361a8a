from __future__ import annotations

import math

import pytest
import torch

from accord.losses import cpo, dpo
from losses.test_simpo import draw, one


def test_by_hand():
    # difference 4: beta 1/2 gives z = 2; the likelihood term is 2 / 4
    streams = one(-2.0, -6.0, (4.0, 3.0))
    total, metrics = cpo(**streams, beta=0.5)
    assert total.item() == pytest.approx(math.log(1 + math.exp(-2)) + 0.5, rel=1e-12)
    assert metrics["cpo/loss"].item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert metrics["cpo/nll"].item() == 0.5 and metrics["rewards/margins"].item() == 2.0
    assert cpo(**streams, beta=0.125, loss="hinge", sft_coef=0.0)[0].item() == pytest.approx(0.5)
    assert cpo(**streams, beta=0.5, loss="ipo", sft_coef=0.0)[0].item() == pytest.approx(9.0)
    assert cpo(**streams, beta=0.5, loss="ipo", sft_coef=0.0, length_normalize=True)[0].item() == pytest.approx(0.25)
    smooth = cpo(**streams, beta=0.5, label_smoothing=0.1, sft_coef=0.0)[0].item()
    assert smooth == pytest.approx(0.9 * math.log(1 + math.exp(-2)) + 0.1 * math.log(1 + math.exp(2)))


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_it_is_dpo_with_a_uniform_reference(loss):
    """A reference that gives every answer the same log-probability cancels."""
    streams = draw(0)
    same = {"ref_chosen_P": torch.full((6,), -9.0), "ref_rejected_P": torch.full((6,), -9.0)}
    ours = cpo(**streams, beta=0.3, loss=loss, sft_coef=0.5)[0].item()
    assert ours == pytest.approx(dpo(**streams, **same, beta=0.3, loss=loss, sft_coef=0.5)[0].item(), rel=1e-12)


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_sign(loss):
    streams = one(-2.0, -2.0, (2.0, 2.0))
    chosen, rejected = streams["chosen_P"].requires_grad_(), streams["rejected_P"].requires_grad_()
    cpo(**streams, beta=0.1, loss=loss)[0].backward()
    assert chosen.grad.item() < 0 < rejected.grad.item()
    still = cpo(**one(-2.0, -2.0, (2.0, 2.0)), beta=0.1, loss=loss, sft_coef=0.0)[0].item()
    assert still == pytest.approx({"sigmoid": math.log(2), "hinge": 1.0, "ipo": 25.0}[loss])
