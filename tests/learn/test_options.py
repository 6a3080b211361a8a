"""That it learns with options, too: all weights, and one seed each, since `test_learning.py` has three of each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from accord.training.run import Run
from learn.test_learning import good_or_odd
from recipes.tiny_runs import run, write_rows

GRADERS = """
import zlib


def share(text):
    return sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1)


def letters(prompts, responses):
    return [share(text) for text in responses]


def mostly(prompts, responses):
    return [float(share(text) > 0.5) for text in responses]


def noise(prompts, responses):
    return [1000.0 * (zlib.crc32(text.encode()) % 7) for text in responses]


def nothing(prompts, responses):
    return [0.0] * len(responses)
"""


def sampled(base: Path, folder: Path, graders: Sequence[str], iterations: int, **sections: dict[str, Any]) -> Run:
    """A run with rollouts, in the size of `test_learning.py`."""
    (folder / "graders.py").write_text(GRADERS)
    algorithm = {"epochs": 2, "minibatches": 2} | sections["algorithm"]
    kind = algorithm["type"]
    over = {
        "adapter": None,
        "reward": [f"{folder}/graders.py:{name}" for name in graders],
        "rollout": {"max_new_tokens": 6, "samples": 4} | sections.get("rollout", {}),
        "algorithm": ({"kl": {"coef": 0.0}} if kind == "grpo" else {}) | algorithm,
        "train": {
            "iterations": iterations,
            "batch_size": 40,
            "learning_rate": 0.01,
            "checkpoint_every": 0,
            "rollouts_every": 0,
        },
    }
    return run(kind, base, folder, over)


def last_three(rows: Sequence[dict[str, float]], name: str) -> float:
    return sum(row[name] for row in rows[-3:]) / 3


@pytest.mark.parametrize(
    "algorithm",
    [{"type": "grpo", "scale": "batch"}, {"type": "rejection", "keep": "threshold", "threshold": 0.6}],
    ids=["grpo_batch", "rejection_threshold"],
)
def test_it_makes_the_rewarded_likelier(algorithm, base, tmp_path: Path):
    rows = sampled(base, tmp_path, ["letters"], 14, algorithm=algorithm).metrics
    assert rows[0]["env/reward_mean"] < 0.45 and last_three(rows, "env/reward_mean") > 0.65
    if algorithm["type"] == "rejection":
        assert rows[0]["rejection/kept"] < 0.3 and last_three(rows, "rejection/kept") > 0.8


@pytest.mark.parametrize("each", [True, False], ids=["each", "sum"])
def test_a_reward_that_noise_drowns_is_learnt_where_each_is_normalised(each, base, tmp_path: Path):
    """GDPO: the same letters beside a thousand times as much of what nobody can learn."""
    algorithm = {"type": "grpo", "normalize_each": each}
    rows = sampled(base, tmp_path, ["letters", "noise"], 22, algorithm=algorithm).metrics
    assert rows[0]["env/reward/letters"] < 0.45
    learnt = last_three(rows, "env/reward/letters")
    assert learnt > 0.7 if each else learnt < 0.5


def test_it_learns_from_yes_and_no_while_groups_that_agree_are_replaced(base, tmp_path: Path):
    rollout = {"dynamic_sampling": 3}
    rows = sampled(base, tmp_path, ["mostly"], 16, algorithm={"type": "grpo"}, rollout=rollout).metrics
    assert rows[0]["grpo/equal_groups"] == 0.0 < rows[0]["sampling/groups_dropped"]
    assert 1 < rows[0]["sampling/rounds"] <= 4
    assert rows[0]["env/reward_mean"] < 0.6 and last_three(rows, "env/reward_mean") > 0.8


def test_the_penalty_for_length_alone_makes_answers_short(base, tmp_path: Path):
    rows = sampled(base, tmp_path, ["nothing"], 20, algorithm={"type": "grpo", "overlong": 6}).metrics
    assert rows[0]["sampling/length_mean"] > 5.5 and last_three(rows, "sampling/length_mean") < 3.0


def test_simpo_with_a_hinge_prefers_what_people_prefer_on_pairs_it_has_not_seen(base, tmp_path: Path):
    over = {
        "adapter": None,
        "data": {"path": write_rows(tmp_path / "rows.jsonl", good_or_odd()), "eval_fraction": 0.3},
        "algorithm": {"loss": "hinge"},
        "train": {"steps": 25, "batch_size": 8, "learning_rate": 0.003, "checkpoint_every": 0},
    }
    last = run("simpo", base, tmp_path, over).metrics[-1]
    assert last["eval/rewards/accuracies"] > 0.8 and last["eval/rewards/margins"] > 0
    assert last["simpo/loss"] < 0.4


@pytest.mark.parametrize("beta", [0.0, 1.0], ids=["forward_kl", "reverse_kl"])
def test_distill_learns_from_either_divergence(beta, base, teacher, tmp_path: Path):
    over = {
        "adapter": None,
        "teacher": str(teacher),
        "reward": [],
        "rollout": {"max_new_tokens": 8},
        "algorithm": {"epochs": 2, "minibatches": 2, "beta": beta},
        "train": {"iterations": 15, "batch_size": 24, "learning_rate": 0.01, "checkpoint_every": 0},
    }
    rows = run("distill", base, tmp_path, over).metrics
    assert rows[-1]["distill/divergence"] < 0.35 * rows[0]["distill/divergence"]
