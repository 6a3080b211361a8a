"""Adapters: numbers that learn equal those of peft on real models; optimiser states equal those of the optimisers."""

from __future__ import annotations

import json

import pytest
import torch

from accord.config import METHODS, OptimizerConfig, TrainConfig
from accord.config.optim import OPTIMIZERS, plain
from accord.forecast.families import architecture
from accord.forecast.learning import BYTES, STATES, largest_matrix, learning_adapter, optimizer_bytes
from accord.training.optim import make_optimizer
from forecast.measured import policy_of

ADAPTERS = {
    "lora": {"method": "lora", "r": 4},
    "lora by name": {"method": "lora", "r": 4, "targets": ("q_proj", "down_proj")},
    "lora by pattern": {"method": "lora", "r": 4, "targets": r".*\.self_attn\.(q|v)_proj"},
    "dora": {"method": "lora", "r": 4, "dora": True},
    "adalora": {"method": "adalora"},
    "ia3": {"method": "ia3"},
    "ia3 by name": {"method": "ia3", "targets": ("k_proj", "down_proj"), "feedforward": ("down_proj",)},
    "prompt": {"method": "prompt", "tokens": 7},
    "prefix": {"method": "prefix", "tokens": 7},
    "prefix, projected": {"method": "prefix", "tokens": 7, "projection": True},
    "ptuning": {"method": "ptuning", "tokens": 7, "hidden": 24},
}


def shape_of(folder):
    return architecture(json.loads((folder / "config.json").read_text()))


def counted(folder, config) -> int:
    roles = policy_of(folder, config, "auto")
    return sum(weight.numel() for weight in roles.trainable("policy").values())


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_has_as_many_numbers_as_peft_makes(name, model_folder):
    config = METHODS[ADAPTERS[name]["method"]](**ADAPTERS[name])
    folder = model_folder("llama_grouped")
    assert learning_adapter(config, shape_of(folder)).parameters == counted(folder, config)


FAMILIES = ["qwen3", "mistral", "gpt2", "gpt_neox", "gemma3", "bloom", "opt", "mixtral", "qwen3_moe", "jamba", "t5"]


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_on_each_family(family, model_folder):
    config, folder = METHODS["lora"](r=4), model_folder(family)
    assert learning_adapter(config, shape_of(folder)).parameters == counted(folder, config)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "bloom", "opt", "mistral"])
def test_ia3_on_families_that_peft_has_a_table_for(family, model_folder):
    config, folder = METHODS["ia3"](), model_folder(family)
    assert learning_adapter(config, shape_of(folder)).parameters == counted(folder, config)


def test_an_lstm_makes_virtual_tokens(model_folder):
    config, folder = METHODS["ptuning"](tokens=5, encoder="lstm", hidden=16, layers=2), model_folder("llama")
    assert learning_adapter(config, shape_of(folder)).parameters == counted(folder, config)


def test_adam_keeps_eight_bytes_a_parameter():
    assert optimizer_bytes("adamw", {}, 4) == 8
    assert optimizer_bytes("Adam", {}, 4) == 8
    assert optimizer_bytes("adamw", {}, 2) == 4  # torch keeps the moments in the weights' own type
    assert optimizer_bytes("adamw", {"amsgrad": True}, 4) == 12
    assert optimizer_bytes("sgd", {}, 4) == 0
    assert optimizer_bytes("sgd", {"momentum": 0.9}, 4) == 4
    assert optimizer_bytes("adamw8bit", {}, 4) == pytest.approx(2.03, abs=0.01)
    assert optimizer_bytes("my.package.Own", {}, 4) == 8  # unknown: taken for Adam


@pytest.mark.parametrize("name", [name for name, path in OPTIMIZERS.items() if path.startswith("torch.")])
def test_torch_optimisers_keep_what_the_table_says(name):
    weight = torch.nn.Parameter(torch.randn(64, 96))
    given = TrainConfig(learning_rate=1e-3, optimizer=OptimizerConfig(name=name))
    optimizer = make_optimizer([{"params": [weight], "lr": 1e-3, "weight_decay": 0.0, "label": "base"}], given)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    kept = sum(t.numel() * t.element_size() for t in optimizer.state[weight].values() if torch.is_tensor(t) and t.ndim)
    assert kept == pytest.approx(optimizer_bytes(name, {}, 4) * weight.numel(), rel=0.01)


OWN_STATE = ("Lion", "PagedAdamW", "PagedLion", "AdEMAMix", "LAMB", "LARS", "AdamW8bit", "Lion8bit")


@pytest.mark.parametrize("name", OWN_STATE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitsandbytes_optimisers_keep_what_the_table_says(name, dtype):
    """Their 32-bit states are float32 whatever the weight's type."""
    bnb = pytest.importorskip("bitsandbytes")
    weight = torch.nn.Parameter(torch.randn(256, 256, dtype=dtype))
    keywords = {"momentum": 0.9} if name == "LARS" else {}
    optimizer = getattr(bnb.optim, name)([weight], lr=1e-3, **keywords)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    state = optimizer.state[weight].items()
    kept = sum(t.nbytes for key, t in state if torch.is_tensor(t) and t.ndim and "qmap" not in key)
    assert kept == pytest.approx(optimizer_bytes(name, {}, weight.itemsize) * weight.numel(), rel=0.01)


def test_every_optimiser_is_in_the_table():
    assert {plain(name) for name in OPTIMIZERS} <= set(STATES) | set(BYTES)


def test_the_largest_matrix_is_usually_the_embedding(model_folder):
    shape = shape_of(model_folder("llama"))
    assert largest_matrix(shape) == shape.vocabulary * 32
    moe = shape_of(model_folder("mixtral"))
    assert largest_matrix(moe) == max(moe.vocabulary * 32, 2 * 4 * 32 * 48)
