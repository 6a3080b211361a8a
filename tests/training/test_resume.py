"""Invariant 4: a run that was killed anywhere, and resumed, equals one that was not: rows and weights, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pyarrow import parquet
from safetensors.torch import load_file

import accord
from accord.config import RECIPES, RolloutRecipe
from accord.training.learner import Learner
from accord.training.run import Run
from recipes.tiny_runs import completions, recipe_dict, same_weights, steps, timeless, write_rows

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": (
        "sft",
        {"adapter": {"dropout": 0.1}, "train": {"steps": 4, "batch_size": 5}},
    ),  # the epoch ends in iteration 3
    "reward": ("reward", {"train": {"steps": 4}, "data": {"eval_fraction": 0.25}}),
    "kto": ("kto", {"train": {"steps": 4}, "data": {"eval_fraction": 0.25}}),
    "bco": ("bco", {"train": {"steps": 4, "eval_every": 1}, "data": {"eval_fraction": 0.25}}),
    "classify": (
        "classify",
        {
            "adapter": {"method": "prefix", "tokens": 3},
            "train": {"steps": 4, "eval_every": 1},
            "data": {"eval_fraction": 0.25},
        },
    ),
    "ppo": ("ppo", {"train": {"iterations": 4}}),
    "ppo_state": (
        "ppo",
        {
            "algorithm": {"reward_normalize": True, "kl": {"target": 0.01, "horizon": 20}, "value_warmup": 2},
            "rollout": {"samples": 2},
            "train": {"iterations": 4, "batch_size": 8},
        },
    ),
    "dpo": ("dpo", {"train": {"steps": 4}, "data": {"eval_fraction": 0.25}}),
    "dpo_full": ("dpo", {"adapter": None, "train": {"steps": 4, "learning_rate": 1e-3}}),
    "dpo_aot": ("dpo", {"algorithm": {"loss": "aot_unpaired"}, "train": {"steps": 4}}),
    "orpo": ("orpo", {"train": {"steps": 4}}),
    "optimizer_and_plateau": (
        "sft",
        {
            "train": {
                "steps": 4,
                "optimizer": {"name": "adafactor", "beta1": 0.9},
                "schedule": {"name": "reduce_lr_on_plateau", "metric": "sft/loss", "patience": 0, "threshold": 1.0},
                "lora_plus_ratio": 4,
            }
        },
    ),
    "ppo_ptx": (
        "ppo",
        {"ptx": {"data": {"path": "ptx.jsonl"}, "coef": 0.5, "batch_size": 5}, "train": {"iterations": 4}},
    ),
    "grpo_dynamic": (
        "grpo",
        {
            "rollout": {"dynamic_sampling": 2, "max_new_tokens": 2},  # so short that many groups have one score
            "algorithm": {"kl_stop": 1e-3, "correction": "mask"},
            "train": {"iterations": 4, "batch_size": 8},
        },
    ),
    "online_dpo": ("online_dpo", {"train": {"iterations": 4, "batch_size": 8}}),
    "remax": ("remax", {"train": {"iterations": 4}}),
    "rejection": ("rejection", {"train": {"iterations": 4, "batch_size": 8}, "adapter": {"dropout": 0.1}}),
    "distill": (
        "distill",
        {"train": {"iterations": 4}, "data": {"path": "ptx.jsonl"}, "algorithm": {"on_policy": 0.6}},
    ),
    "ppo_full": ("ppo", {"adapter": None, "train": {"iterations": 4, "learning_rate": 1e-3}}),
}


@pytest.fixture(scope="module")
def uninterrupted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Run]]:
    """Each kind, run through; its folder holds data and rewards, so that the others read the very same ones."""
    runs = {}
    for name, (kind, over) in KINDS.items():
        folder = tmp_path_factory.mktemp(name)
        config = recipe_dict(kind, base, folder, over)
        if "ptx" in config or kind == "distill":
            config.get("ptx", config)["data"]["path"] = write_rows(folder / "ptx.jsonl", completions())
        runs[name] = (folder, accord.train(config, quiet=True))
    return runs


def test_killed_while_it_learns_steps(base, tmp_path: Path, monkeypatch):
    over = {
        "algorithm": {"level": "step"},
        "adapter": {"dropout": 0.1},
        "data": {"path": write_rows(tmp_path / "steps.jsonl", steps())},
        "train": {"steps": 4},
    }
    whole = accord.train(recipe_dict("reward", base, tmp_path / "whole", over), quiet=True)
    config = recipe_dict("reward", base, tmp_path / "killed", over)
    train_until(config, 3, monkeypatch)
    assert_same(accord.train(config, quiet=True, resume=True), whole)


def config_of(uninterrupted, name: str, output: Path, train: Mapping[str, Any] | None = None) -> dict[str, Any]:
    folder, _ = uninterrupted[name]
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    config["output"] = str(output)
    config["train"] |= train or {}
    return config


def assert_same(run: Run, reference: Run) -> None:
    assert timeless(run.metrics) == timeless(reference.metrics)
    assert same_weights(run.model, reference.model)
    ours, theirs = ([*sorted((r.path / "rollouts").glob("*"))] for r in (run, reference))
    assert [file.name for file in ours] == [file.name for file in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert parquet.read_table(a).to_pylist() == parquet.read_table(b).to_pylist()


class Killed(BaseException):
    """Stands for a process that is no more: nothing of ours catches it."""


def train_until(config: Mapping[str, Any], step: int, monkeypatch: pytest.MonkeyPatch, after: bool = False) -> None:
    """Train, and die when optimiser step `step` (from 1) is about to be taken, or was just taken."""
    update = Learner.update

    def dying(self, batch):
        if not after and self.steps == step - 1:
            raise Killed
        metrics = update(self, batch)
        if after and self.steps == step:
            raise Killed
        return metrics

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Learner, "update", dying)
        accord.train(config, quiet=True)


@pytest.mark.parametrize(
    ("name", "iteration"),
    [(name, 3) for name in KINDS] + [(name, iteration) for name in ("sft", "ppo_state") for iteration in (2, 4)],
)
def test_killed_in_an_iteration(name, iteration, uninterrupted, tmp_path: Path, monkeypatch):
    """Iteration 3 of sft straddles the epoch's end, iteration 2 of ppo begins straight after a checkpoint."""
    config = config_of(uninterrupted, name, tmp_path / "run")
    per_iteration = 4 if issubclass(RECIPES[KINDS[name][0]], RolloutRecipe) else 1
    train_until(config, (iteration - 1) * per_iteration + min(2, per_iteration), monkeypatch)
    assert_same(accord.train(config, quiet=True, resume=True), uninterrupted[name][1])


@pytest.mark.parametrize("name", ["sft", "ppo_state"])
@pytest.mark.parametrize("every", [0, 2])
def test_killed_long_after_the_checkpoint(name, every, uninterrupted, tmp_path: Path, monkeypatch):
    """Rows and rollouts that came after the checkpoint are made again and not twice; 0: there was none at all."""
    config = config_of(uninterrupted, name, tmp_path / "run", {"checkpoint_every": every})
    train_until(config, 13 if name.startswith("ppo") else 4, monkeypatch, after=True)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    assert_same(accord.train(config, quiet=True, resume=True), uninterrupted[name][1])


@pytest.mark.parametrize("name", ["dpo", "dpo_full"])
@pytest.mark.parametrize("kept", [True, False], ids=["cached", "computed anew"])
def test_the_reference_is_where_the_run_began(kept, name, uninterrupted, tmp_path: Path, monkeypatch):
    """The weights have moved by the time of the resume, and the reference has not: with the kept file and without it."""
    monkeypatch.setenv("ACCORD_CACHE", str(tmp_path / "cache"))
    config = config_of(uninterrupted, name, tmp_path / "run")
    train_until(config, 4, monkeypatch)
    (file,) = (tmp_path / "cache" / "reference").iterdir()
    before = load_file(file)
    if not kept:
        file.unlink()
    assert_same(accord.train(config, quiet=True, resume=True), uninterrupted[name][1])
    assert before.keys() == {"logprobs_N"} and torch.equal(load_file(file)["logprobs_N"], before["logprobs_N"])


def test_killed_straight_after_a_checkpoint(uninterrupted, tmp_path: Path, monkeypatch):
    import accord.training.loop as loop

    config = config_of(uninterrupted, "ppo", tmp_path / "run")
    write = loop.write_checkpoint

    def dying(folder, iteration, *rest):
        write(folder, iteration, *rest)
        if iteration == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "write_checkpoint", dying)
        accord.train(config, quiet=True)
    assert_same(accord.train(config, quiet=True, resume=True), uninterrupted["ppo"][1])


def test_killed_before_the_checkpoint_of_a_logged_iteration(uninterrupted, tmp_path: Path, monkeypatch):
    """The row was written, the checkpoint was not: the iteration runs again, and its row stands once."""
    import accord.training.loop as loop

    config = config_of(uninterrupted, "ppo", tmp_path / "run")

    def dying(parts, directory, iteration, write=loop._checkpoint):
        if iteration == 3:
            raise Killed
        write(parts, directory, iteration)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "_checkpoint", dying)
        accord.train(config, quiet=True)
    assert_same(accord.train(config, quiet=True, resume=True), uninterrupted["ppo"][1])


def test_killed_twice_and_by_its_own_reward(uninterrupted, tmp_path: Path):
    """A reward function that raises stops the run in the middle of collecting; mended, it goes on."""
    folder, reference = uninterrupted["ppo_state"]
    config = config_of(uninterrupted, "ppo_state", tmp_path / "run")
    file = folder / "rewards.py"
    good = file.read_text()
    try:
        for calls in (2, 1):
            broken = (
                f"calls = []\n{good}\n_brevity = brevity\n\ndef brevity(prompts, responses):\n    calls.append(1)\n"
            )
            file.write_text(broken + f"    assert len(calls) < {calls + 1}\n    return _brevity(prompts, responses)\n")
            with pytest.raises(accord.RewardError):
                accord.train(config, quiet=True, resume=calls == 1)
        assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
            "step-000002",
            "step-000003",
        ]
    finally:
        file.write_text(good)
    assert_same(accord.train(config, quiet=True, resume=True), reference)


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_resuming_a_finished_run_changes_nothing(name, uninterrupted, tmp_path: Path):
    config = config_of(uninterrupted, name, tmp_path / "run")
    accord.train(config, quiet=True)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text()
    again = accord.train(config, quiet=True, resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == rows
    assert_same(again, uninterrupted[name][1])


def test_a_finished_run_goes_on_for_more_iterations(uninterrupted, tmp_path: Path):
    """With a schedule that does not depend on the length, 2 + 2 iterations are 4."""
    flat = {"schedule": "constant", "warmup": 0}
    whole = accord.train(config_of(uninterrupted, "ppo", tmp_path / "whole", flat), quiet=True)
    accord.train(config_of(uninterrupted, "ppo", tmp_path / "run", flat | {"iterations": 2}), quiet=True)
    on = accord.train(config_of(uninterrupted, "ppo", tmp_path / "run", flat), quiet=True, resume=True)
    assert timeless(on.metrics) == timeless(whole.metrics) and same_weights(on.model, whole.model)


def test_resume_of_nothing_starts_at_the_beginning(uninterrupted, tmp_path: Path):
    config = config_of(uninterrupted, "sft", tmp_path / "run")
    assert_same(accord.train(config, quiet=True, resume=True), uninterrupted["sft"][1])


def test_a_real_kill_in_the_middle(uninterrupted, base, tmp_path: Path):
    """SIGKILL of a process that computes rewards of iteration 3; then `accord ppo --output RUN --resume` in this one."""
    folder, reference = uninterrupted["ppo"]
    file, mark = folder / "rewards.py", tmp_path / "reached"
    good = file.read_text()
    config = tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump(config_of(uninterrupted, "ppo", tmp_path / "run")))
    hang = f"import pathlib, time\n{good}\n_brevity, calls = brevity, []\n\ndef brevity(prompts, responses):\n"
    hang += f"    calls.append(1)\n    if len(calls) == 3:\n        pathlib.Path({str(mark)!r}).touch()\n"
    hang += "        time.sleep(120)\n"
    try:
        file.write_text(hang + "    return _brevity(prompts, responses)\n")
        command = [sys.executable, "-m", "accord", "ppo", str(config), "--quiet"]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        ) as process:
            deadline = time.monotonic() + 90
            while not mark.exists():
                assert process.poll() is None, process.stderr.read().decode()
                assert time.monotonic() < deadline, "the run did not reach its third iteration in 90 s"
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait(10) == -signal.SIGKILL
    finally:
        file.write_text(good)
    from accord.cli import main

    assert main(["ppo", "--output", str(tmp_path / "run"), "--resume", "--quiet"]) == 0
    assert_same(Run(tmp_path / "run", accord.training.run.read_metrics(tmp_path / "run")), reference)
