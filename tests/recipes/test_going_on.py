"""A run that goes on from a saved adapter says what that adapter is, and which of the recipe's keys have no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accord.recipes import BUILDERS
from recipes.tiny_runs import recipe, run


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory) -> dict[str, Path]:
    shapes: dict[str, dict[str, Any]] = {
        "lora": {"r": 4, "alpha": 8.0, "targets": ["q_proj", "up_proj"], "dropout": 0.1},
        "every_layer": {"r": 4, "alpha": 8.0},
        "adalora": {"method": "adalora", "init_r": 3, "target_r": 2},
        "ia3": {"method": "ia3"},
        "prefix": {"method": "prefix", "tokens": 3, "projection": True},
        "ptuning": {"method": "ptuning", "tokens": 3, "hidden": 8, "encoder": "lstm", "dropout": 0.3},
    }
    folder = tmp_path_factory.mktemp("shapes")
    return {name: run("sft", base, folder / name, {"adapter": shape}).model for name, shape in shapes.items()}


def opened(kind: str, start: Path, folder: Path, adapter: dict[str, Any]):
    over = {"adapter": adapter}
    if kind != "sft":
        over["train"] = {"batch_size": 4}
    asked = recipe(kind, start, folder, over)
    return BUILDERS[kind](asked)


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward", "ppo"])
def test_the_saved_shape_is_told_and_each_other_wish_noted(kind, saved, tmp_path: Path) -> None:
    wish = {"r": 64, "alpha": 8, "dropout": 0.5, "targets": ["q_proj"], "rslora": True, "dora": False}
    parts = opened(kind, saved["lora"], tmp_path, wish)
    assert "(lora r=4)" in parts.facts["learns"]
    assert [note.split(" has no effect")[0] for note in parts.notes if "no effect" in note] == [
        "adapter.r: 64",
        "adapter.targets: q_proj",
        "adapter.rslora: True",
    ]
    assert f"goes on from {saved['lora']}, whose r is 4" in "\n".join(parts.notes)
    assert "whose targets is q_proj, up_proj" in "\n".join(parts.notes)


def test_the_recipe_s_dropout_acts(saved, tmp_path: Path) -> None:
    for dropout in (0.5, None):
        wish = {"r": 4, "alpha": 8} | ({} if dropout is None else {"dropout": dropout})
        roles = opened("sft", saved["lora"], tmp_path / str(dropout), wish).learner.roles
        layer = roles.model.model.layers[0].self_attn.q_proj
        assert (roles.adapters.config("policy").lora_dropout, roles.adapters.config("start").lora_dropout) == (
            dropout or 0.0,
            0.1,
        )
        assert getattr(layer.lora_dropout["policy"], "p", 0.0) == (dropout or 0.0)


@pytest.mark.parametrize(
    ("start", "adapter", "noted"),
    [
        ("lora", {"r": 4, "alpha": 8}, []),
        ("lora", {"r": 4, "alpha": 8, "targets": ["up_proj", "q_proj"]}, []),
        ("lora", {"r": 4, "alpha": 8, "targets": "all-linear"}, ["adapter.targets: all-linear"]),
        ("every_layer", {"r": 4, "alpha": 8, "targets": "all-linear", "dora": True}, ["adapter.dora: True"]),
        ("adalora", {"method": "adalora", "init_r": 9, "every": 1}, ["adapter.init_r: 9"]),
        ("ia3", {"method": "ia3"}, []),
        (
            "ia3",
            {"method": "ia3", "targets": ["k_proj"], "feedforward": []},
            ["adapter.targets: k_proj", "adapter.feedforward: "],
        ),
        (
            "prefix",
            {"method": "prefix", "tokens": 7, "projection": True},
            ["adapter.tokens: 7", "adapter.projection: True"],
        ),
        ("ptuning", {"method": "ptuning", "encoder": "lstm", "dropout": 0.3}, ["adapter.dropout: 0.3"]),
    ],
)
def test_what_is_noted_of_each_method(start, adapter, noted, saved, tmp_path: Path) -> None:
    parts = opened("sft", saved[start], tmp_path, adapter)
    assert [note.split(" has no effect")[0] for note in parts.notes] == noted


def test_a_fresh_adapter_and_all_weights_have_no_notes(base, saved, tmp_path: Path) -> None:
    assert opened("sft", base, tmp_path / "fresh", {"r": 64}).notes == []
    full = BUILDERS["sft"](recipe("sft", saved["lora"], tmp_path / "full", {"adapter": None}))
    assert full.notes == [] and "(all weights)" in full.facts["learns"]
