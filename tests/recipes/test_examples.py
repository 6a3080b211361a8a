"""What the recipes share that learn from examples."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from accord.cli.train import read_recipe
from accord.model.merging import merge
from accord.recipes import BUILDERS
from accord.recipes.build import check_start
from recipes.tiny_runs import recipe, run

LEARNERS = ("sft", "dpo", "orpo", "simpo", "cpo", "reward", "classify")
METHODS = ("lora", "adalora", "ia3", "prompt", "prefix", "ptuning")


@pytest.mark.parametrize("method", METHODS)
def test_what_is_proposed_next_can_be_done(method, base, tmp_path: Path) -> None:
    made = run(
        "sft",
        base,
        tmp_path / "made",
        {"adapter": {"method": method}, "train": {"steps": 1 + 5 * (method == "adalora")}},
    )
    for kind in LEARNERS:
        over = {"adapter": {"method": method}}
        start = made.model if kind == "reward" else base
        asked = recipe(kind, start, tmp_path / kind, over | {"output": str(made.path), "train": {"steps": 6}})
        commands = [command for _, command in BUILDERS[kind](asked).next_steps if command.startswith("accord ")]
        for command in commands:
            _, verb, *words = shlex.split(command)
            if verb == "merge":
                merge(Path(words[0]), tmp_path / kind / "merged", torch.float32)
            elif verb in ("reward", "ppo"):
                check_start(read_recipe(verb, words))
            else:
                assert verb == "generate"
        assert kind in ("reward", "classify") or commands[0].startswith("accord generate")
        assert any("accord merge" in command for command in commands) == (
            kind != "reward" and method in ("lora", "adalora", "ia3")
        )
