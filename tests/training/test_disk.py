"""A disk that is full, at every place where a run writes: word of how to go on, nothing half written, and it does go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import accord
from accord.errors import ConfigError, RunError
from accord.training.disk import writing
from accord.training.run import Run, read_metrics
from accord.training.state import find_fault
from recipes.tiny_runs import recipe_dict, same_weights, timeless

FULL = "import json, os, resource\n_, HARD = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
REWARD = f"""
{FULL}
calls = []

def brevity(prompts, responses):
    calls.append(1)
    if len(calls) == 2:  # no file may be longer from the second iteration on
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["ROOM"]), HARD))
    return [-float(len(text)) for text in responses]
"""
COMMANDS = f"""
import contextlib, io, sys
{FULL}
from accord.cli import main

said = []
for words, at_start, room in json.loads(sys.argv[1]):
    os.environ["ROOM"] = str(room)
    error = io.StringIO()
    if at_start:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, HARD))
    with contextlib.redirect_stderr(error):
        code = main(words)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HARD, HARD))
    said.append([code, error.getvalue()])
print(json.dumps(said))
"""


def test_a_full_disk_is_said_and_costs_nothing_that_was_learnt(base: Path, tmp_path: Path) -> None:
    """One run for each place; the limit is on the length of any file, which fails as a full disk does."""
    whole = accord.train(recipe_dict("ppo", base, tmp_path / "whole"), quiet=True)
    places = {  # what fails -> bytes that a file may have, whether from the start of a resumed run
        "the checkpoint of iteration 2": (60_000, False),
        "the metrics of iteration 2": (1_000, False),
        "the rollouts of iteration 2": (1_000, False),
        "the model": (10_000, True),
        "the report": (40_000, True),
        "the recipe": (100, True),
    }
    commands, folders = [], []
    for number, (what, (room, resumed)) in enumerate(places.items()):
        folder = tmp_path / ("finished" if resumed else str(number))
        folders.append(folder)
        over = {} if "rollouts" in what else {"train": {"rollouts_every": 0}}
        config = recipe_dict("ppo", base, folder, over)
        (folder / "ppo.yaml").write_text(yaml.safe_dump(config))
        run = ["ppo", str(folder / "ppo.yaml"), "--quiet"]
        if resumed:
            accord.train(config, quiet=True, resume=True)
            run.append("--resume")
        else:
            (folder / "rewards.py").write_text(REWARD)
        commands.append((run, resumed, room))
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    for what, folder, (code, error) in zip(places, folders, json.loads(done.stdout), strict=True):
        assert code == 1 and f"{what} could not be written" in error and "(--resume)" in error, error
        assert "File too large" in error and "Traceback" not in error
        left = [path.name for path in (folder / "run").rglob("*") if "partial" in path.name]
        assert left == [], what
        checkpoints = sorted((folder / "run" / "checkpoints").iterdir())
        assert checkpoints and all(find_fault(path) is None for path in checkpoints)
    for folder in dict.fromkeys(folders):
        (folder / "rewards.py").write_text((tmp_path / "whole" / "rewards.py").read_text())
        again = accord.train(yaml.safe_load((folder / "ppo.yaml").read_text()), quiet=True, resume=True)
        assert timeless(again.metrics) == timeless(whole.metrics) and same_weights(again.model, whole.model)


def test_other_errors_stay_what_they_are() -> None:
    for error in (ConfigError("a recipe"), ValueError("a defect")):
        with pytest.raises(type(error), match=str(error)), writing("x", Path("y")):
            raise error
    with (
        pytest.raises(RunError, match=r"^x could not be written to y: no room. What was written before is whole"),
        writing("x", Path("y")),
    ):
        raise OSError("no room")
    with pytest.raises(RunError, match="File too large"), writing("x", Path("y")):
        raise Exception("File too large (os error 27)")  # as tokenizers raises it


def test_what_a_killed_run_left_of_a_checkpoint_is_removed_when_it_goes_on(base: Path, tmp_path: Path) -> None:
    config = recipe_dict("sft", base, tmp_path)
    run = accord.train(config, quiet=True)
    partial = run.path / "checkpoints" / ".step-000007.partial"
    partial.mkdir()
    (partial / "tensors.safetensors").write_bytes(b"half")
    accord.train(config, quiet=True, resume=True)
    assert not partial.exists() and len(read_metrics(run.path)) == 2
    assert Run(run.path).model.is_dir()
