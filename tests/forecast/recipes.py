"""Recipes on shapes alone: a folder with a config.json and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from accord.config import RECIPES, ModelConfig, PPORecipe, Recipe, SFTRecipe, build
from accord.config.train import ExampleTrain, RolloutTrain

TINY = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 10,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
NEOX_20B = {
    "model_type": "gpt_neox",
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "vocab_size": 50432,
    "tie_word_embeddings": False,
    "rotary_pct": 0.25,
    "dtype": "bfloat16",
}


class LaterModel(ModelConfig):
    """The model section with `quantize`."""

    quantize: Literal["none", "int8", "nf4"] = "none"


class LaterExamples(ExampleTrain):
    """The train section with `activation_checkpointing`."""

    activation_checkpointing: bool = False


class LaterRollouts(RolloutTrain):
    """The same for rollouts."""

    activation_checkpointing: bool = False


class LaterSFT(SFTRecipe):
    """SFT with both."""

    model: LaterModel
    train: LaterExamples = LaterExamples()


class LaterPPO(PPORecipe):
    """PPO with both."""

    model: LaterModel
    train: LaterRollouts = LaterRollouts()


LATER: dict[str, type[Recipe]] = {"sft": LaterSFT, "ppo": LaterPPO}
"""Recipes that have the keys whatever the package's own have."""


def shape_folder(folder: Path, config: dict[str, Any]) -> str:
    """A folder with that config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def recipe_of(kind: str, path: str, **sections: Any) -> Recipe:
    """A recipe of a kind; sections on top."""
    given: dict[str, Any] = {"model": {"path": path}, "data": {"path": "rows.jsonl"}, "output": "runs/x"}
    if kind in ("ppo", "grpo", "rloo"):
        given["reward"] = "rewards.py:brevity"
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section} if isinstance(section, dict) else section
    return build(LATER.get(kind, RECIPES[kind]), given)
