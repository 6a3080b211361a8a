from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from accord.losses import cpo, simpo


def draw(seed: int, length: int | None = None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    streams = {
        n: -10 + 3 * torch.randn(6, generator=generator, dtype=torch.float64) for n in ("chosen_P", "rejected_P")
    }
    for name in ("chosen_lengths_P", "rejected_lengths_P"):
        lengths = torch.randint(1, 20, (6,), generator=generator).double()
        streams[name] = lengths if length is None else torch.full((6,), float(length), dtype=torch.float64)
    return streams | {"pairs": torch.tensor(6.0, dtype=torch.float64)}


def one(chosen: float, rejected: float, lengths: tuple[float, float]) -> dict[str, Any]:
    values = {
        "chosen_P": chosen,
        "rejected_P": rejected,
        "chosen_lengths_P": lengths[0],
        "rejected_lengths_P": lengths[1],
    }
    return {name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()} | {
        "pairs": torch.tensor(1.0)
    }


def test_by_hand():
    # means -1/2 and -2, difference 3/2; beta 2, gamma 1: z = 2
    loss, metrics = simpo(**one(-2.0, -6.0, (4.0, 3.0)), beta=2.0, gamma_beta_ratio=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-12)
    assert metrics["rewards/chosen"].item() == -1.0 and metrics["rewards/rejected"].item() == -4.0
    assert metrics["rewards/margins"].item() == 3.0 and metrics["logps/chosen"].item() == -2.0
    assert metrics["simpo/loss"].item() == pytest.approx(loss.item()) and "simpo/nll" not in metrics


def test_options_by_hand():
    streams = one(-2.0, -6.0, (4.0, 3.0))
    smooth = simpo(**streams, beta=2.0, gamma_beta_ratio=0.5, label_smoothing=0.1)[0].item()
    assert smooth == pytest.approx(0.9 * math.log(1 + math.exp(-2)) + 0.1 * math.log(1 + math.exp(2)))
    assert simpo(**streams, beta=0.5, gamma_beta_ratio=0.5, loss="hinge")[0].item() == pytest.approx(0.5)
    total, metrics = simpo(**streams, beta=2.0, gamma_beta_ratio=0.5, sft_coef=3.0)
    assert total.item() == pytest.approx(math.log(1 + math.exp(-2)) + 3 * 0.5)
    assert metrics["simpo/nll"].item() == 0.5 and metrics["simpo/loss"].item() < total.item()
    # AlphaPO at alpha = 1: rewards 1 - e^(1/2) and 1 - e^2, z = 2 (e^2 - e^(1/2)) - 1
    alpha = simpo(**streams, beta=2.0, gamma_beta_ratio=0.5, alpha=1.0)[0].item()
    assert alpha == pytest.approx(math.log(1 + math.exp(1 - 2 * (math.exp(2) - math.exp(0.5)))))


@pytest.mark.parametrize("seed", range(3))
def test_without_margin_it_is_cpo_of_mean_log_probabilities(seed):
    same = {"beta": 0.7, "label_smoothing": 0.1, "sft_coef": 0.4}
    ours = simpo(**draw(seed), **same, gamma_beta_ratio=0.0)[0]
    theirs = cpo(**draw(seed), **same, length_normalize=True)[0]
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-13)


def test_alpha_tends_to_simpo():
    near = simpo(**draw(1), beta=2.0, gamma_beta_ratio=0.3, alpha=1e-8)[0].item()
    assert near == pytest.approx(simpo(**draw(1), beta=2.0, gamma_beta_ratio=0.3)[0].item(), rel=1e-6)


def test_the_margin_is_demanded():
    values = [simpo(**one(-2.0, -2.0, (2.0, 2.0)), beta=2.0, gamma_beta_ratio=g)[0].item() for g in (0.0, 0.5, 1.0)]
    assert values[0] == pytest.approx(math.log(2)) and values == sorted(values)


@pytest.mark.parametrize("loss", ["sigmoid", "hinge"])
def test_sign(loss):
    streams = one(-2.0, -2.0, (2.0, 2.0))
    chosen, rejected = streams["chosen_P"].requires_grad_(), streams["rejected_P"].requires_grad_()
    simpo(**streams, beta=2.0, gamma_beta_ratio=0.5, loss=loss)[0].backward()
    assert chosen.grad.item() < 0 < rejected.grad.item()


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.25, 2.0])
def test_extremes_stay_finite(alpha):
    for values in ((-1e4, 0.0), (0.0, -1e4)):
        streams = {name: value.float() for name, value in one(*values, (1.0, 1.0)).items()}
        chosen = streams["chosen_P"].requires_grad_()
        loss, _ = simpo(**streams, beta=2.0, gamma_beta_ratio=0.5, alpha=alpha)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(chosen.grad).all()
