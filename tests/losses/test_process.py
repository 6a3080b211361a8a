"""Cross-entropy at the ends of steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from accord.losses import process_reward

MASK_T = torch.tensor([False, True, False, True, True])


def call(scores: list[float], labels: list[float]) -> tuple[Tensor, dict[str, float], Tensor]:
    """Scores and labels of the three steps; the rest is NaN, which must not count."""
    scores_T, labels_T = (
        torch.full((5,), math.nan, dtype=torch.float64).masked_scatter(MASK_T, torch.tensor(x, dtype=torch.float64))
        for x in (scores, labels)
    )
    scores_T.requires_grad_()
    loss, metrics = process_reward(scores_T=scores_T, labels_T=labels_T, mask_T=MASK_T, tokens=torch.tensor(3.0))
    loss.backward()
    return loss, {name: value.item() for name, value in metrics.items()}, scores_T.grad


def test_indifference_is_log_2():
    loss, metrics, _ = call([0.0, 0.0, 0.0], [1.0, 0.0, 0.3])
    assert loss.item() == pytest.approx(math.log(2)) and metrics["reward/accuracy"] == 0.5


def test_literals():
    # sigmoid(ln 3) = 3/4: a good step costs ln 4/3, a bad one ln 4, one that is half good the half of both
    loss, metrics, _ = call([math.log(3)] * 3, [1.0, 0.0, 0.5])
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4) + (math.log(4 / 3) + math.log(4)) / 2) / 3)
    assert metrics["reward/accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)


def test_gradient_is_probability_minus_label_at_ends_and_0_elsewhere():
    _, _, gradient = call([math.log(3), -math.log(3), 0.0], [1.0, 1.0, 0.2])
    assert gradient.tolist() == pytest.approx([0, (0.75 - 1) / 3, 0, (0.25 - 1) / 3, (0.5 - 0.2) / 3])


def test_the_loss_is_least_where_the_probability_is_the_soft_label():
    def at(p: float) -> float:
        return call([math.log(p / (1 - p))] * 3, [0.3] * 3)[0].item()

    assert at(0.3) < min(at(0.29), at(0.31))


@pytest.mark.parametrize("into", [1, 2, 4])
def test_any_split_adds_up_to_the_whole(into):
    generator = torch.Generator().manual_seed(into)
    scores, labels = torch.randn(12, generator=generator), torch.rand(12, generator=generator)
    mask = torch.rand(12, generator=generator) < 0.6

    def run(pieces: list[Tensor]) -> list[float]:
        done = [
            process_reward(scores_T=scores[p], labels_T=labels[p], mask_T=mask[p], tokens=mask.sum().float())
            for p in pieces
        ]
        return [sum(float(loss) for loss, _ in done), sum(float(m["reward/accuracy"]) for _, m in done)]

    assert run(list(torch.arange(12).tensor_split(into))) == pytest.approx(run([torch.arange(12)]), rel=1e-6)
