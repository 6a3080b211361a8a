"""Whole runs with prefixes in common computed once, and with each sequence whole: the same but for rounding, and fewer tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accord.recipes import BUILDERS
from recipes.tiny_runs import ROWS, recipe, run, timeless, write_rows

LONG = "a slow film with a fine cast and the end was odd and the film was good and "
GROUPS = ("rloo", "grpo", "online_dpo")
PAIRS = ("dpo", "reward", "orpo")


def long_rows(kind: str, folder: Path) -> str:
    """The usual rows, each behind the same words, which are longer than a prefix has to be."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_rows(folder / "long.jsonl", [row | {"prompt": LONG + row["prompt"]} for row in ROWS[kind]()])


@pytest.mark.parametrize("of", ["llama", "mistral"])
@pytest.mark.parametrize("kind", [*GROUPS, *PAIRS])
def test_a_run_is_the_same_with_and_without(
    kind: str, of: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = {}
    for on in (True, False):
        over: dict[str, Any] = {
            "model": {"share_prefixes": on},
            "data": {"path": long_rows(kind, tmp_path / str(on)), "max_tokens": 100},
        }
        if kind in GROUPS:
            over |= {"rollout": {"samples": 4}, "train": {"batch_size": 8}}
        rows[on] = timeless(run(kind, model_folder(of), tmp_path / str(on), over).metrics)
    for shared, whole in zip(rows[True], rows[False], strict=True):
        assert whole["tokens/computed"] == whole["tokens/total"] == shared["tokens/total"]
        assert shared["tokens/computed"] < 0.8 * whole["tokens/computed"]
        for name, value in whole.items():
            if name != "tokens/computed" and not name.startswith("sampling/logprob_difference"):
                assert shared[name] == pytest.approx(value, rel=2e-3, abs=2e-4), name


@pytest.mark.parametrize(
    ("of", "over", "said"),
    [
        ("llama", {}, None),
        ("llama", {"model": {"share_prefixes": False}}, "by the policy: model.share_prefixes is off"),
        ("llama", {"adapter": {"method": "prefix", "tokens": 2}}, "by the policy: virtual tokens of the adapter come"),
        (
            "jamba",
            {},
            "by the policy: only a packed model can attend to a prefix that it computed for another sequence",
        ),
        ("t5", {}, "by the policy: only a packed model can"),
    ],
)
def test_the_header_says_which_roles_compute_prefixes_again(
    of: str, over: dict[str, Any], said: str | None, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    facts = BUILDERS["sft"](recipe("sft", model_folder(of), tmp_path, over)).facts
    assert ("prefixes" in facts) == (said is not None)
    assert said is None or facts["prefixes"].startswith(f"computed again for each sequence {said}")


def test_tokens_of_a_run_that_cannot_share_are_all_computed(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    over: dict[str, Any] = {"data": {"path": long_rows("dpo", tmp_path), "max_tokens": 100}}
    for row in run("dpo", model_folder("mamba"), tmp_path, over).metrics:
        assert row["tokens/computed"] == row["tokens/total"] > 0
