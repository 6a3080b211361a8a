from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from accord.losses import orpo


def call(chosen: list[float], rejected: list[float], lengths: list[float], beta: float, dtype=torch.float64):
    c, r, n = (torch.tensor(values, dtype=dtype) for values in (chosen, rejected, lengths))
    c.requires_grad_(), r.requires_grad_()
    loss, metrics = orpo(
        chosen_P=c,
        rejected_P=r,
        chosen_lengths_P=n,
        rejected_lengths_P=n,
        pairs=torch.tensor(float(len(chosen)), dtype=dtype),
        beta=beta,
    )
    loss.backward()
    return loss, {name: value.item() for name, value in metrics.items()}, c.grad, r.grad


def test_by_hand():
    # per token p(chosen) = 3/4, p(rejected) = 1/4: odds 3 and 1/3, their ratio 9, sigmoid(ln 9) = 9/10
    loss, metrics, *_ = call([3 * math.log(0.75)], [3 * math.log(0.25)], [3.0], 0.5)
    assert loss.item() == pytest.approx(math.log(4 / 3) + 0.5 * math.log(10 / 9), rel=1e-12)
    assert metrics["orpo/nll"] == pytest.approx(math.log(4 / 3))
    assert metrics["orpo/log_odds"] == pytest.approx(math.log(9))
    assert metrics["orpo/loss"] == pytest.approx(loss.item())
    assert metrics["rewards/margins"] == pytest.approx(0.5 * math.log(3))
    assert metrics["logps/chosen"] == pytest.approx(3 * math.log(0.75)) and metrics["rewards/accuracies"] == 1.0


def test_equal_answers_give_the_likelihood_and_log_2():
    loss, metrics, *_ = call([-2.0, -4.0], [-2.0, -4.0], [2.0, 2.0], 0.1)
    assert loss.item() == pytest.approx(1.5 + 0.1 * math.log(2), rel=1e-12)
    assert metrics["orpo/log_odds"] == 0.0 and metrics["rewards/accuracies"] == 0.5


def test_without_the_odds_it_is_fine_tuning_on_the_chosen():
    loss, _, chosen, rejected = call([-2.0, -6.0], [-2.0, -1.0], [2.0, 3.0], 0.0)
    assert loss.item() == pytest.approx((1 + 2) / 2)
    assert chosen.tolist() == pytest.approx([-1 / 4, -1 / 6]) and rejected.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("seed", range(4))
def test_equals_plain_loops_and_the_papers_gradient(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (5,), generator=generator).double()
    c, r = (-torch.rand(5, generator=generator, dtype=torch.float64) * 3 * lengths for _ in range(2))
    total, slopes = 0.0, []
    for p in range(5):
        m = lengths[p].item()
        pc, pr = math.exp(c[p].item() / m), math.exp(r[p].item() / m)
        odds_ratio = (pc / (1 - pc)) / (pr / (1 - pr))
        total += (-c[p].item() / m + 0.3 * math.log(1 + 1 / odds_ratio)) / 5
        # arXiv:2403.07691, equations 8 to 10: delta = 1 / (1 + odds ratio), h = grad log p / (1 - p)
        slopes.append((-1 / m - 0.3 / (1 + odds_ratio) / (1 - pc) / m) / 5)
    loss, _, chosen, _ = call(c.tolist(), r.tolist(), lengths.tolist(), 0.3)
    assert loss.item() == pytest.approx(total, rel=1e-12)
    assert chosen.tolist() == pytest.approx(slopes, rel=1e-9)


def test_sign():
    _, _, chosen, rejected = call([-2.0], [-2.0], [2.0], 0.5)
    assert chosen.item() < 0 < rejected.item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_and_impossible_answers_stay_finite(dtype):
    loss, _, chosen, rejected = call([0.0, -1e5, -1e-7], [-1e5, 0.0, -1e-7], [1.0, 1.0, 1.0], 0.1, dtype)
    assert torch.isfinite(loss) and torch.isfinite(chosen).all() and torch.isfinite(rejected).all()


def test_odds_keep_their_digits_near_certainty():
    """log(1 - p) of p = exp(-0.001) in float32, where 1 - p has lost 4 of 7 digits."""

    def log_odds(value: float) -> Tensor:
        return call([value], [math.log(0.5)], [1.0], 1.0, torch.float32)[1]["orpo/log_odds"]

    assert log_odds(-1e-3) == pytest.approx(-1e-3 - math.log(-math.expm1(-1e-3)), rel=1e-6)
    assert log_odds(-20.0) == pytest.approx(-20.0, rel=1e-6)
