"""Run directories that are taken, and checkpoints that are damaged."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM

import accord
from accord.training.run import read_metrics
from recipes.tiny_runs import recipe_dict, same_weights, timeless

HOLD = (
    "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('held', flush=True); time.sleep(60)"
)


def test_an_output_that_is_not_empty(accord_command, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    outcome = accord_command("sft")
    assert outcome.code == 1
    assert f"{tmp_path / 'run'} is not empty" in outcome.error and "--resume" in outcome.error
    assert (tmp_path / "run" / "thesis.tex").read_text() == "mine"


def test_an_output_that_is_a_file(accord_command, tmp_path: Path):
    (tmp_path / "run").write_text("mine")
    outcome = accord_command("sft")
    assert outcome.code == 1 and f"{tmp_path / 'run'} is a file" in outcome.error
    assert (tmp_path / "run").read_text() == "mine"


def test_a_finished_run_is_not_overwritten(accord_command, tmp_path: Path):
    assert accord_command("sft").code == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert accord_command("sft").code == 1
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_an_output_in_use(accord_command, tmp_path: Path):
    assert accord_command("sft").code == 0
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            outcome = accord_command("sft", None, "--resume")
        finally:
            holder.kill()
    assert outcome.code == 1 and f"{tmp_path / 'run'} is in use by another process" in outcome.error


def test_resume_with_another_recipe(accord_command):
    assert accord_command("sft").code == 0
    outcome = accord_command("sft", {"train": {"weight_decay": 0.5}}, "--resume")
    assert outcome.code == 2 and "train.weight_decay: was 0.0, now 0.5" in outcome.error


def test_a_checkpoint_cut_short(accord_command, base, tmp_path: Path):
    """The run goes on from the one before, says so, and ends where it would have ended."""
    over = {"train": {"iterations": 3, "keep": 3}}
    whole = accord.train(recipe_dict("ppo", base, tmp_path / "whole", over), quiet=True)
    assert accord_command("ppo", over).code == 0
    newest = tmp_path / "run" / "checkpoints" / "step-000003" / "tensors.safetensors"
    size = newest.stat().st_size
    newest.write_bytes(newest.read_bytes()[: size // 2])
    outcome = accord_command("ppo", over, "--resume")
    assert outcome.code == 0
    words = " ".join(outcome.out.split())
    said = f"step-000003 is damaged (tensors.safetensors has {size // 2} bytes instead of {size})"
    assert f"{said}; falling back to the one before" in words
    assert "resumed from step-000002" in words
    assert timeless(read_metrics(tmp_path / "run")) == timeless(whole.metrics)
    assert same_weights(tmp_path / "run" / "model", whole.model)


def test_every_checkpoint_damaged(accord_command, tmp_path: Path):
    assert accord_command("sft").code == 0
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        (folder / "state.json").unlink()
    outcome = accord_command("sft", None, "--resume")
    assert outcome.code == 1
    assert "step-000002 is damaged (state.json is missing)" in outcome.error and "another `output`" in outcome.error
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 2


WILD = {"adapter": None, "train": {"learning_rate": 1e20, "steps": 4, "warmup": 0, "schedule": "constant"}}
MENDED = ("--resume", "--train.learning_rate", "0.001")
WEIGHTS_GAVE_IT = (
    "Nothing was learnt since {}, so its weights are those that gave this: unless it was the scores, move that folder"
)


def test_a_learning_rate_that_breaks_the_model(accord_command, tmp_path: Path):
    """Its step is in the newest checkpoint: a lower rate alone helps nothing, and what the message says does."""
    newest = tmp_path / "run" / "checkpoints" / "step-000001"
    for words in ((), MENDED):
        outcome = accord_command("sft", WILD, *words)
        assert outcome.code == 1
        assert "step 2: " in outcome.error
        assert "not finite, so the step was not taken. Lower train.learning_rate" in outcome.error
        assert f"{WEIGHTS_GAVE_IT.format(newest)} away first, and the run goes on from the beginning" in outcome.error
    newest.rename(tmp_path / "aside")
    assert accord_command("sft", WILD, *MENDED).code == 0
    assert len(read_metrics(tmp_path / "run")) == 4


def test_a_learning_rate_that_breaks_the_model_later(accord_command, tmp_path: Path):
    assert accord_command("sft", WILD | {"train": WILD["train"] | {"learning_rate": 1e-3, "steps": 2}}).code == 0
    outcome = accord_command("sft", WILD, "--resume")
    newest = tmp_path / "run" / "checkpoints" / "step-000003"
    assert outcome.code == 1 and "step 4: " in outcome.error
    assert f"{WEIGHTS_GAVE_IT.format(newest)} away first, and the run goes on from step-000002" in outcome.error
    newest.rename(tmp_path / "aside")
    assert accord_command("sft", WILD, *MENDED).code == 0
    assert len(read_metrics(tmp_path / "run")) == 4


def test_a_learning_rate_that_breaks_the_model_behind_a_checkpoint(accord_command, tmp_path: Path):
    """The newest checkpoint was written before its steps: a lower rate from there helps."""
    calm = WILD | {"train": WILD["train"] | {"learning_rate": 1e-3, "steps": 2, "checkpoint_every": 2}}
    assert accord_command("sft", calm).code == 0
    wild = WILD | {"train": WILD["train"] | {"checkpoint_every": 2}}
    outcome = accord_command("sft", wild, "--resume")
    assert outcome.code == 1 and "step 4: " in outcome.error
    assert outcome.error.rstrip().endswith("(algorithm.reward_clip bounds them); then go on with --resume")
    assert accord_command("sft", wild, *MENDED).code == 0
    assert len(read_metrics(tmp_path / "run")) == 4


def test_a_model_that_is_broken_from_the_start(accord_command, base: Path, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(shutil.copytree(base, tmp_path / "broken"))
    outcome = accord_command("sft", {"model": {"path": str(tmp_path / "broken")}})
    assert outcome.code == 1
    assert "step 1: " in outcome.error and "It is the first, so look for NaN in the model's weights" in outcome.error
    assert "train.learning_rate" not in outcome.error
