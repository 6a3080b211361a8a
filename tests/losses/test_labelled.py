"""KTO and BCO: what they share, and each by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.losses import bco, kto

UP, DOWN = True, False
BOTH = pytest.mark.parametrize("loss_of", [kto, bco], ids=["kto", "bco"])


def call(loss_of, logprobs, reference, labels, baseline=0.0, beta=0.5, **other: Any) -> tuple[Tensor, dict[str, float]]:
    labels_N = torch.tensor(labels)
    loss, metrics = loss_of(
        logprobs_N=logprobs if isinstance(logprobs, Tensor) else torch.tensor(logprobs, dtype=torch.float64),
        ref_logprobs_N=torch.tensor(reference, dtype=torch.float64),
        labels_N=labels_N,
        baselines_N=torch.full((len(labels),), baseline, dtype=torch.float64),
        beta=beta,
        sequences=torch.tensor(float(len(labels))),
        desirable=labels_N.sum().float(),
        **other,
    )
    return loss, {name: float(value) for name, value in metrics.items()}


def test_kto_at_the_reference_is_half_the_weight():
    assert call(kto, [-3.0, -4.0], [-3.0, -4.0], [UP, DOWN])[0].item() == 0.5
    weighted = call(kto, [-3.0, -4.0], [-3.0, -4.0], [UP, DOWN], desirable_weight=3.0, undesirable_weight=2.0)
    assert weighted[0].item() == pytest.approx((3 * 0.5 + 2 * 0.5) / 2)


def test_bco_at_the_reference_is_log_2():
    assert call(bco, [-3.0, -4.0], [-3.0, -4.0], [UP, DOWN])[0].item() == pytest.approx(math.log(2), rel=1e-7)


def test_kto_literals():
    # r = 0.5 * 2 ln 3 = ln 3 and 0.5 * -2 ln 4 = -ln 4. Up: 1 - 3/4; down: 1 - sigmoid(ln 4) = 1 - 4/5
    logprobs, reference = [2 * math.log(3) - 7, -2 * math.log(4)], [-7.0, 0.0]
    loss, metrics = call(kto, logprobs, reference, [UP, DOWN])
    assert loss.item() == pytest.approx((1 / 4 + 1 / 5) / 2, rel=1e-6)
    assert metrics == pytest.approx(
        {
            "kto/loss": (1 / 4 + 1 / 5) / 2,
            "kto/accuracy": 1.0,
            "rewards/chosen": math.log(3),
            "rewards/rejected": -math.log(4),
            "rewards/margins": math.log(12),
            "logps/chosen": 2 * math.log(3) - 7,
            "logps/rejected": -2 * math.log(4),
        },
        rel=1e-6,
    )


def test_kto_gains_are_relative_to_the_baseline():
    # r = ln 3, b = 2 ln 3: up: 1 - sigmoid(-ln 3) = 3/4; down: 1 - sigmoid(ln 3) = 1/4
    gain = [2 * math.log(3)]
    assert call(kto, gain, [0.0], [UP], 2 * math.log(3))[0].item() == pytest.approx(3 / 4, rel=1e-6)
    assert call(kto, gain, [0.0], [DOWN], 2 * math.log(3))[0].item() == pytest.approx(1 / 4, rel=1e-6)


def test_bco_literals():
    # r - delta = ln 3 (up: -ln 3/4) and -ln 4 (down: -ln 4/5); the weights of 2 and 3
    logprobs, reference = [2 * math.log(3) + 2, -2 * math.log(4) + 2], [0.0, 0.0]
    loss, metrics = call(bco, logprobs, reference, [UP, DOWN], 1.0)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(5 / 4)) / 2, rel=1e-6)
    assert metrics["bco/accuracy"] == 1.0 and metrics["rewards/margins"] == pytest.approx(math.log(12))
    weighted, _ = call(bco, logprobs, reference, [UP, DOWN], 1.0, desirable_weight=2.0, undesirable_weight=3.0)
    assert weighted.item() == pytest.approx((2 * math.log(4 / 3) + 3 * math.log(5 / 4)) / 2, rel=1e-6)


@BOTH
def test_accuracy_counts_the_right_side_of_the_baseline(loss_of):
    _, metrics = call(loss_of, [4.0, 1.0, 2.0, 0.0], [0.0] * 4, [UP, UP, UP, DOWN], 1.0)  # rewards 2, 0.5, 1, 0
    assert next(v for k, v in metrics.items() if k.endswith("/accuracy")) == (1 + 0 + 0.5 + 1) / 4


@BOTH
def test_sign_a_step_down_makes_the_liked_likelier_and_the_disliked_less_likely(loss_of):
    logprobs = torch.tensor([-5.0, -5.0], requires_grad=True)
    call(loss_of, logprobs, [-5.0, -5.0], [UP, DOWN])[0].backward()
    assert logprobs.grad[0] < 0 < logprobs.grad[1]


@pytest.mark.parametrize("seed", range(4))
@BOTH
def test_gradient_equals_the_closed_form(loss_of, seed):
    generator = torch.Generator().manual_seed(seed)
    logprobs, reference = (torch.randn(2, 6, generator=generator, dtype=torch.float64) * 3 - 9).unbind()
    logprobs.requires_grad_()
    labels = [True, False, True, True, False, False]
    call(loss_of, logprobs, reference.tolist(), labels, 0.3, 0.2, desirable_weight=1.5)[0].backward()
    for n, label in enumerate(labels):
        gain = (0.2 * (logprobs[n] - reference[n])).item() - 0.3
        p, weight = 1 / (1 + math.exp(-gain)), 1.5 if label else 1.0
        slope = p * (1 - p) if loss_of is kto else (1 - p if label else p)
        expected = (-1 if label else 1) * weight * 0.2 * slope / 6
        assert logprobs.grad[n].item() == pytest.approx(expected, rel=1e-6)


@BOTH
def test_no_gradient_goes_through_the_baseline(loss_of):
    baselines = torch.tensor([0.2, 0.2], requires_grad=True)
    loss, _ = loss_of(
        logprobs_N=torch.tensor([-1.0, -2.0], requires_grad=True),
        ref_logprobs_N=torch.tensor([-2.0, -2.0]),
        labels_N=torch.tensor([True, False]),
        baselines_N=baselines,
        beta=0.1,
        sequences=torch.tensor(2.0),
        desirable=torch.tensor(1.0),
    )
    loss.backward()
    assert baselines.grad is None


@pytest.mark.parametrize("into", [1, 2, 3, 8])
@BOTH
def test_any_split_into_micro_batches_adds_up_to_the_whole(loss_of, into):
    generator = torch.Generator().manual_seed(5)
    logprobs, reference = (torch.randn(2, 8, generator=generator, dtype=torch.float64) - 9).unbind()
    labels = torch.tensor([True, True, False, True, False, True, True, True])

    def run(pieces: list[Tensor]) -> tuple[float, dict[str, float], Tensor]:
        leaf, total, sums = logprobs.clone().requires_grad_(), 0.0, {}
        for piece in pieces:
            loss, metrics = loss_of(
                logprobs_N=leaf[piece],
                ref_logprobs_N=reference[piece],
                labels_N=labels[piece],
                baselines_N=torch.full((len(piece),), 0.1),
                beta=0.3,
                sequences=torch.tensor(8.0),
                desirable=torch.tensor(6.0),
                undesirable_weight=2.0,
            )
            loss.backward()
            total += loss.item()
            sums = {name: sums.get(name, 0.0) + value.item() for name, value in metrics.items()}
        return total, sums, leaf.grad

    whole, split = run([torch.arange(8)]), run(list(torch.randperm(8, generator=generator).tensor_split(into)))
    assert split[0] == pytest.approx(whole[0], rel=1e-13)
    assert split[1] == pytest.approx(whole[1], rel=1e-6)
    torch.testing.assert_close(split[2], whole[2], rtol=1e-13, atol=0)
    rewards = 0.3 * (logprobs - reference)
    assert whole[1]["rewards/chosen"] == pytest.approx(rewards[labels].mean().item(), rel=1e-6)
    assert whole[1]["rewards/rejected"] == pytest.approx(rewards[~labels].mean().item(), rel=1e-6)


@BOTH
def test_extremes_stay_finite(loss_of):
    loss, _ = call(loss_of, [-1e5, 1e5], [0.0, 0.0], [UP, DOWN])
    assert math.isfinite(loss.item())
