from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor

from accord.losses import bradley_terry


def call(chosen: list[float], rejected: list[float], **other: object) -> tuple[Tensor, dict[str, float]]:
    loss, metrics = bradley_terry(
        chosen_P=torch.tensor(chosen, dtype=torch.float64),
        rejected_P=torch.tensor(rejected, dtype=torch.float64),
        pairs=torch.tensor(float(len(chosen))),
        **other,
    )
    return loss, {name: value.item() for name, value in metrics.items()}


def test_equal_scores_give_log_2():
    loss, metrics = call([1.0, -3.0], [1.0, -3.0])
    assert loss.item() == pytest.approx(math.log(2), rel=1e-15)
    assert metrics["reward/accuracy"] == 0.5, "a tie is half right"


def test_literals():
    # differences ln 3 and -ln 3: sigmoid 3/4 and 1/4; loss (ln 4/3 + ln 4) / 2 = ln(16/3) / 2
    loss, metrics = call([math.log(3), 1.0], [0.0, 1.0 + math.log(3)])
    assert loss.item() == pytest.approx(math.log(16 / 3) / 2, rel=1e-14)
    assert metrics == pytest.approx(
        {
            "reward/loss": math.log(16 / 3) / 2,
            "reward/accuracy": 0.5,
            "reward/margin": 0.0,
            "reward/chosen_mean": (math.log(3) + 1) / 2,
            "reward/rejected_mean": (1 + math.log(3)) / 2,
        },
        abs=1e-15,
    )


def test_accuracy_counts_wins_ties_and_losses():
    assert call([2.0, 1.0, 0.0, 5.0], [1.0, 1.0, 3.0, -5.0])[1]["reward/accuracy"] == 0.625  # (1 + 1/2 + 0 + 1) / 4


def test_margin_is_demanded_of_the_difference():
    # difference 2, margin 2 - ln 3: sigmoid(ln 3) = 3/4. The accuracy and the margin metric do not see it.
    loss, metrics = call([2.0], [0.0], margins_P=torch.tensor([2 - math.log(3)], dtype=torch.float64))
    assert loss.item() == pytest.approx(math.log(4 / 3), rel=1e-14)
    assert metrics["reward/accuracy"] == 1.0 and metrics["reward/margin"] == 2.0
    demanding = call([1.0], [0.0], margins_P=torch.tensor([3.0]))
    assert demanding[0] > call([1.0], [0.0])[0] and demanding[1]["reward/accuracy"] == 1.0


def test_centring_literal():
    # log 2 + 0.01 * (3 + 3)^2; the ranking loss is reported without it
    loss, metrics = call([3.0], [3.0], centre_coef=0.01)
    assert loss.item() == pytest.approx(math.log(2) + 0.36, rel=1e-14)
    assert metrics["reward/loss"] == pytest.approx(math.log(2), rel=1e-14)


def test_without_centring_only_differences_count():
    assert call([2.0], [1.0])[0].item() == pytest.approx(call([102.0], [101.0])[0].item(), rel=1e-12)
    assert call([2.0], [1.0], centre_coef=0.1)[0] != call([3.0], [2.0], centre_coef=0.1)[0]


@pytest.mark.parametrize("seed", range(5))
def test_gradient_equals_the_closed_form(seed):
    # d/d chosen = -(1 - sigmoid(c - r - m)) / P + 2 k (c + r) / P; d/d rejected has the first sign turned
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected, margins = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(3))
    chosen.requires_grad_(), rejected.requires_grad_()
    loss, _ = bradley_terry(
        chosen_P=chosen, rejected_P=rejected, pairs=torch.tensor(6.0), margins_P=margins, centre_coef=0.05
    )
    loss.backward()
    for p in range(6):
        c, r, m = chosen[p].item(), rejected[p].item(), margins[p].item()
        loses = 1 / (1 + math.exp(c - r - m))
        assert chosen.grad[p].item() == pytest.approx((-loses + 0.1 * (c + r)) / 6, rel=1e-12)
        assert rejected.grad[p].item() == pytest.approx((loses + 0.1 * (c + r)) / 6, rel=1e-12)


def test_sign_a_step_down_raises_the_chosen_and_lowers_the_rejected():
    chosen, rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    bradley_terry(chosen_P=chosen, rejected_P=rejected, pairs=torch.tensor(1.0))[0].backward()
    assert chosen.grad.item() == -0.5 and rejected.grad.item() == 0.5


def test_hopeless_and_certain_pairs_stay_finite():
    loss, _ = call([-1e4, 1e4], [1e4, -1e4])
    assert loss.item() == pytest.approx(1e4)  # (2e4 + 0) / 2


def test_a_pair_feels_no_other():
    # There is no mask: each score is one pair's. A pair's gradient is the same whatever the others say, even infinity.
    def gradient(other: float) -> float:
        chosen = torch.tensor([0.3, other], requires_grad=True)
        bradley_terry(chosen_P=chosen, rejected_P=torch.zeros(2), pairs=torch.tensor(2.0))[0].backward()
        return chosen.grad[0].item()

    assert gradient(0.0) == gradient(-50.0) == gradient(float("inf"))
    assert not [name for name in inspect.signature(bradley_terry).parameters if "mask" in name]
