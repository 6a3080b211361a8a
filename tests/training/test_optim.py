"""Which weights learn how fast, what is decayed, and which optimisers there are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from accord.config import TrainConfig
from accord.config.optim import OPTIMIZERS
from accord.errors import ConfigError
from accord.training.optim import check_optimizer, make_groups, make_optimizer

NAMES = {
    "policy.adapter.layer.lora_A.policy.weight": (4, 4),
    "policy.adapter.layer.lora_B.policy.weight": (4, 4),
    "critic.adapter.layer.lora_A.critic.weight": (4, 4),
    "critic.adapter.layer.lora_B.critic.weight": (4, 4),
    "critic.value_head.weight": (1, 4),
    "policy.trunk.norm.weight": (4,),
}


def weights() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(shape)) for name, shape in NAMES.items()}


def rates(config: TrainConfig, rates: dict[str, float] | None = None) -> list[float]:
    """The rate of each weight, in the order of NAMES."""
    mine = weights()
    groups = make_groups(mine, config, rates or {})
    assert sum(len(group["params"]) for group in groups) == len(mine)
    rate = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    return [rate[id(weight)] for weight in mine.values()]


def test_one_rate_unless_told_otherwise():
    assert rates(TrainConfig(learning_rate=0.1)) == [0.1] * 6


def test_lora_plus_head_and_critic_rates():
    assert rates(TrainConfig(learning_rate=1.0, lora_plus_ratio=16)) == [1, 16, 1, 16, 1, 1]
    assert rates(TrainConfig(learning_rate=1.0), {"critic": 5.0}) == [1, 1, 5, 5, 5, 1]
    everything = TrainConfig(learning_rate=1.0, lora_plus_ratio=16, head_learning_rate=7.0)
    assert rates(everything, {"critic": 5.0}) == [1, 16, 5, 80, 7, 1]


def test_a_value_head_on_the_policy_s_trunk_is_the_critic_s():
    mine = {
        "policy.trunk.w": nn.Parameter(torch.ones(2, 2)),
        "policy.value_head.weight": nn.Parameter(torch.ones(1, 2)),
    }
    groups = make_groups(mine, TrainConfig(learning_rate=1.0), {"critic": 3.0})
    assert [(group["lr"], group["label"]) for group in groups] == [(1.0, "base"), (3.0, "critic")]


def test_lora_plus_without_a_lora_b():
    with pytest.raises(ConfigError, match="no weight that learns here is a LoRA B"):
        make_groups(
            {"policy.trunk.w": nn.Parameter(torch.ones(2))}, TrainConfig(learning_rate=1.0, lora_plus_ratio=4), {}
        )


def test_only_matrices_are_decayed():
    mine = {
        "matrix": nn.Parameter(torch.ones(2, 2)),
        "norm": nn.Parameter(torch.ones(2)),
        "critic.value_head.weight": nn.Parameter(torch.ones(1, 2)),
    }
    config = TrainConfig(learning_rate=0.1, weight_decay=0.5, optimizer={"name": "adamw", "betas": [0.8, 0.9]})
    optimizer = make_optimizer(make_groups(mine, config, {}), config)
    for weight in mine.values():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.allclose(mine["matrix"], torch.full((2, 2), 0.95))  # 1 - lr x decay
    assert torch.equal(mine["norm"], torch.ones(2))
    assert torch.equal(mine["critic.value_head.weight"], torch.ones(1, 2))
    assert all(group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def one_step(name: str | dict, gradient: torch.Tensor, rate: float = 0.1) -> torch.Tensor:
    weight = nn.Parameter(torch.ones(64, 128))
    config = TrainConfig(learning_rate=rate, optimizer=name)
    optimizer = make_optimizer(make_groups({"policy.w": weight}, config, {}), config)
    weight.grad = gradient.clone()
    optimizer.step()
    return weight.detach()


@pytest.fixture
def gradient() -> torch.Tensor:
    return torch.randn(64, 128, generator=torch.Generator().manual_seed(3)) + 0.5


TORCH = sorted(name for name, target in OPTIMIZERS.items() if target.startswith("torch."))


@pytest.mark.parametrize("name", [*TORCH, "adafactor", "torch.optim.Adafactor"])
def test_a_step_of_each_goes_downhill(name, gradient):
    moved = one_step(name, gradient) - 1
    assert float((moved * gradient).sum()) < 0 and bool(torch.isfinite(moved).all())


def test_sgd_by_hand(gradient):
    assert torch.allclose(one_step("sgd", gradient), 1 - 0.1 * gradient)


def test_adafactor_takes_the_recipe_s_rate():
    """A constant gradient has a factored second moment of exactly its square, so the update is lr x sign (clipped at 1)."""
    moved = one_step("adafactor", torch.full((64, 128), -3.0))
    assert torch.allclose(moved, torch.full((64, 128), 1.1), atol=1e-6)


def test_lion_is_the_sign_of_the_interpolated_momentum(gradient):
    """Chen et al. 2023 (arXiv:2302.06675), program 1: u = sign(b1 m + (1 - b1) g); m = b2 m + (1 - b2) g."""
    pytest.importorskip("bitsandbytes")
    weight, other = nn.Parameter(torch.ones(64, 128)), torch.ones(64, 128)
    config = TrainConfig(learning_rate=0.01, weight_decay=0.1, optimizer={"name": "lion", "betas": [0.9, 0.99]})
    optimizer = make_optimizer(make_groups({"policy.w": weight}, config, {}), config)
    momentum = torch.zeros(64, 128)
    for scale in (1.0, -3.0, 0.2):
        weight.grad = scale * gradient
        optimizer.step()
        step = torch.sign(0.9 * momentum + 0.1 * scale * gradient)
        other = other * (1 - 0.01 * 0.1) - 0.01 * step
        momentum = 0.99 * momentum + 0.01 * scale * gradient
        assert torch.allclose(weight, other, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["adam8bit", "adamw8bit", "lion8bit", "paged_adamw", "paged_adamw8bit", "ademamix8bit"]
)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_of_bitsandbytes(name, gradient):
    pytest.importorskip("bitsandbytes")
    moved = one_step(name, gradient, 0.01) - 1
    # The first step of Adam and Lion is lr x sign; 8 bits blur it.
    sure = gradient.abs() > 0.1
    assert float((moved[sure] / (-0.01 * gradient[sure].sign()) - 1).abs().mean()) < 0.2


def test_an_optimizer_by_object(gradient):
    weight = nn.Parameter(torch.ones(64, 128))
    config = TrainConfig(learning_rate=0.1, optimizer="adamw")
    groups = make_groups({"policy.w": weight}, config, {})
    optimizer = make_optimizer(groups, config, lambda groups: torch.optim.SGD(groups, momentum=0.5))
    weight.grad = gradient.clone()
    optimizer.step()
    assert torch.allclose(weight, 1 - 0.1 * gradient)
    with pytest.raises(ConfigError, match="it gave a list"):
        make_optimizer(groups, config, lambda groups: groups)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": {"name": "adamw", "beta": [0.9, 0.9]}}, r"has no keyword `beta`: did you mean `betas`\?"),
        ({"optimizer": {"name": "sgd", "zzz": 1}}, "it has momentum, dampening, nesterov"),
        ({"optimizer": "no_such_package.Lamb"}, "needs the package no_such_package, which is not installed"),
        ({"optimizer": "torch.optim.Lamb"}, "torch.optim has no Lamb"),
        ({"optimizer": "torch.nn.Linear"}, r"is no torch\.optim\.Optimizer"),
        ({"optimizer": "rprop", "weight_decay": 0.1}, "the optimizer rprop has none: set it to 0"),
    ],
)
def test_what_is_not_there_is_said_before_any_weight(given, message):
    with pytest.raises(ConfigError, match=message):
        check_optimizer(TrainConfig(**given))


def test_values_that_the_optimizer_refuses():
    config = TrainConfig(learning_rate=0.1, optimizer={"name": "adamw", "betas": [1.5, 0.9]})
    with pytest.raises(ConfigError, match=r"train\.optimizer adamw: Invalid beta parameter"):
        make_optimizer(make_groups(weights(), config, {}), config)
    config = TrainConfig(learning_rate=0.1, optimizer="muon")
    with pytest.raises(ConfigError, match="Muon only supports 2D parameters"):
        make_optimizer(make_groups(weights(), config, {}), config)


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match=r'pip install "accord\[quant\]"'):
        check_optimizer(TrainConfig(optimizer="lion"))


def test_lora_plus_ratio_is_16_in_the_paper_and_equal_by_default():
    assert TrainConfig().lora_plus_ratio is None
    assert math.isclose(rates(TrainConfig(learning_rate=1e-4, lora_plus_ratio=16))[1], 1.6e-3)
