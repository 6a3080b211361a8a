"""Small recipes, their data, and how runs are compared. Shared by the tests of recipes, faults, cli and learning."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import accord
from accord.config import RECIPES, Recipe, RolloutRecipe, build, merge
from accord.training.run import Run

REWARDS = """
def brevity(prompts, responses):
    return [-float(len(text)) for text in responses]


async def letters(prompts, responses, **columns):
    return [text.count("o") + 0.1 * text.count("a") for text in responses]


def sometimes(prompts, responses, use):
    return [1.0 if used else None for used in use]
"""
WORDS = ("good", "odd", "slow", "fine", "the end", "a cast")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def completions(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"prompt": f"the film {i} was", "completion": f" {WORDS[i % 6]} and {WORDS[(i + 1) % 6]}"} for i in range(count)
    ]


def scored(count: int = 12) -> list[dict[str, Any]]:
    return [row | {"score": i % 5 - 2} for i, row in enumerate(completions(count))]


def pairs(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"prompt": f"the film {i} was", "chosen": " good and fine", "rejected": " odd and slow"} for i in range(count)
    ]


def steps(count: int = 12) -> list[dict[str, Any]]:
    """Judged steps, `good` and `fine` ones better than `odd` ones."""
    judged = [("good", 1), ("odd", 0), ("fine", 0.75)]
    return [
        {
            "prompt": f"the film {i} was",
            "completions": [f" {judged[(i + k) % 3][0]}" for k in range(3 + i % 2)],
            "labels": [judged[(i + k) % 3][1] for k in range(3 + i % 2)],
        }
        for i in range(count)
    ]


def prompts(count: int = 6) -> list[dict[str, Any]]:
    return [{"prompt": f"the film {i} was", "use": i % 2 == 0} for i in range(count)]


def labelled(count: int = 12) -> list[dict[str, Any]]:
    """Up and down in turn, each of its own length."""
    return [
        {"prompt": f"the film {i} was", "completion": f" {WORDS[i % 6]} and {WORDS[(i + 1) % 6]}", "label": i % 2 == 0}
        for i in range(count)
    ]


def classes(count: int = 12) -> list[dict[str, Any]]:
    """Texts of three classes, which differ in one word."""
    names = ("good", "odd", "slow")
    return [{"text": f"the film {i} was {names[i % 3]} and fine", "label": names[i % 3].upper()} for i in range(count)]


def words(count: int = 12) -> list[dict[str, Any]]:
    """Words of two classes, of several tokens some of them."""
    tokens = ("the", "film", "gooodish", "was", "odd", "castle")
    chosen = [[tokens[(i * k + i) % 6] for k in range(2 + i % 4)] for i in range(count)]
    return [{"tokens": row, "labels": ["A" if "o" in word else "B" for word in row]} for row in chosen]


ROWS = {
    "classify": classes,
    "sft": completions,
    **dict.fromkeys(("reward", "dpo", "orpo", "simpo", "cpo"), pairs),
    **dict.fromkeys(("kto", "bco"), labelled),
    "csft": scored,
    **dict.fromkeys(("ppo", "rloo", "grpo", "reinforce", "remax", "rejection", "distill", "online_dpo"), prompts),
}


def recipe_dict(kind: str, model: Path | str, folder: Path, over: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A recipe of two iterations in `folder`; its data and reward file are written there."""
    folder.mkdir(parents=True, exist_ok=True)
    base: dict[str, Any] = {
        "model": {"path": str(model)},
        "adapter": {} if "method" in ((over or {}).get("adapter") or {}) else {"r": 4, "alpha": 8},
        "data": {"path": write_rows(folder / f"{kind}.jsonl", ROWS[kind]()), "max_tokens": 64},
        "algorithm": {"type": kind},
        "train": {"batch_size": 4, "learning_rate": 3e-3, "checkpoint_every": 1},
        "output": str(folder / "run"),
    }
    if issubclass(RECIPES[kind], RolloutRecipe):
        (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
        if kind == "distill":
            base["teacher"] = str(model)
        base["reward"] = f"{folder}/rewards.py:brevity"
        base["rollout"] = {
            "max_new_tokens": 6,
            "samples": 2 if kind in ("rloo", "grpo", "rejection", "online_dpo") else 1,
        }
        base["algorithm"] |= {"epochs": 2, "minibatches": 2}
        base["train"]["iterations"] = 2
    else:
        base["train"]["steps"] = 2
    return merge(base, over or {})


def recipe(kind: str, model: Path | str, folder: Path, over: Mapping[str, Any] | None = None) -> Recipe:
    return build(RECIPES[kind], recipe_dict(kind, model, folder, over))


def run(kind: str, model: Path | str, folder: Path, over: Mapping[str, Any] | None = None, **options: Any) -> Run:
    return accord.train(recipe_dict(kind, model, folder, over), quiet=True, **options)


def timeless(rows: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """Metrics without those of clock and memory: what has to be the same in two equal runs."""
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/")) and not k.endswith("per_second")}
        for row in rows
    ]


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a model or adapter folder."""
    tensors = {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}
    assert tensors, f"no weights in {folder}"
    return tensors


def same_weights(a: Path, b: Path) -> bool:
    """Whether two folders hold the same tensors, bit for bit."""
    left, right = saved_weights(a), saved_weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
