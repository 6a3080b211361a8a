"""Learning rate against literals, and what is decayed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from accord.config import TrainConfig
from accord.training.optim import learning_rate, make_optimizer


def rates(total: int, **options) -> list[float]:
    config = TrainConfig(learning_rate=1.0, **options)
    return [learning_rate(step, total, config) for step in range(total)]


def test_constant():
    assert rates(3, schedule="constant", warmup=0) == [1.0, 1.0, 1.0]


def test_linear_from_the_peak_to_the_floor():
    assert rates(5, schedule="linear", warmup=0, min_learning_rate=0.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert rates(3, schedule="linear", warmup=0, min_learning_rate=0.1) == pytest.approx([1.0, 0.55, 0.1])


def test_cosine_ends_at_the_floor():
    assert rates(5, warmup=0, min_learning_rate=0.0) == pytest.approx([1.0, 0.8535533906, 0.5, 0.1464466094, 0.0])
    assert rates(5, warmup=0)[-1] == pytest.approx(0.1)


def test_warm_up_in_steps_rises_evenly_to_the_peak():
    assert rates(7, warmup=3, schedule="constant") == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0])


def test_warm_up_as_a_share_of_all_steps():
    assert rates(10, warmup=0.25, schedule="constant")[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 0.5), (2, 1), (3, 5)])
def test_short_runs_have_a_positive_rate_below_the_peak(schedule, total, warmup):
    assert all(0 < rate <= 1 for rate in rates(total, warmup=warmup, schedule=schedule))


def test_beyond_the_end_the_rate_stays_at_the_floor():
    assert learning_rate(99, 10, TrainConfig(learning_rate=2.0, warmup=0)) == pytest.approx(0.2)


def test_only_matrices_are_decayed():
    weights = {
        "matrix": nn.Parameter(torch.ones(2, 2)),
        "norm": nn.Parameter(torch.ones(2)),
        "critic.value_head.weight": nn.Parameter(torch.ones(1, 2)),
    }
    optimizer = make_optimizer(weights, TrainConfig(learning_rate=0.1, weight_decay=0.5, betas=(0.8, 0.9)))
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.allclose(weights["matrix"], torch.full((2, 2), 0.95))  # 1 - lr x decay
    assert torch.equal(weights["norm"], torch.ones(2))
    assert torch.equal(weights["critic.value_head.weight"], torch.ones(1, 2))
    assert all(group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_a_model_of_one_kind_of_weight():
    optimizer = make_optimizer({"norm": nn.Parameter(torch.ones(2))}, TrainConfig(learning_rate=0.1))
    assert len(optimizer.param_groups) == 1
