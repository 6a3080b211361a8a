"""The run directory: who may use it, and what may change on resume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import accord
from accord.config import PPORecipe
from accord.errors import ConfigError, RewardError, RunError
from accord.training.run import MAY_CHANGE, RunDirectory, environment, read_saved
from recipes.tiny_runs import recipe, recipe_dict, run

HOLD = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def ppo(tmp_path: Path, **over) -> PPORecipe:
    return recipe("ppo", "some/model", tmp_path, over)


def test_holds_the_recipe_and_the_environment(tmp_path: Path):
    directory = RunDirectory(ppo(tmp_path), resume=False)
    assert yaml.safe_load((directory.path / "config.yaml").read_text())["algorithm"]["type"] == "ppo"
    assert read_saved(directory.path)["seed"] == 0
    facts = environment()
    assert set(facts) >= {
        "accord",
        "torch",
        "transformers",
        "peft",
        "python",
        "processor",
        "cores",
        "threads",
        "commit",
    }
    assert facts["torch"].startswith("2.") and int(facts["cores"]) >= 1
    directory.close()


def test_not_empty_without_resume(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=r"is not empty.*--resume"):
        RunDirectory(ppo(tmp_path), resume=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_resume_writes_over_nothing_that_is_no_run(tmp_path: Path):
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds no run \(there is no config.yaml\).*Nothing was changed"):
        RunDirectory(ppo(tmp_path), resume=True)
    assert [path.name for path in folder.rglob("*")] == ["model", "thesis.tex"]


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunError, match=f"output {tmp_path}/run/below cannot be made: Not a directory") as caught:
        RunDirectory(ppo(tmp_path, output=str(tmp_path / "run" / "below")), resume=False)
    assert "--resume" not in str(caught.value)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_killed_while_it_began_stands_in_nobodys_way(resume, tmp_path: Path):
    (tmp_path / "run").mkdir()
    for name in (".lock", ".config.yaml.partial"):
        (tmp_path / "run" / name).write_text("half")
    directory = RunDirectory(ppo(tmp_path), resume=resume)
    assert read_saved(directory.path)["algorithm"]["type"] == "ppo"
    directory.close()


def test_in_use_by_another_process(tmp_path: Path):
    RunDirectory(ppo(tmp_path), resume=False)._lock.close()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run" / ".lock")], stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(RunError, match="in use by another process"):
                RunDirectory(ppo(tmp_path), resume=True)
        finally:
            holder.kill()
    RunDirectory(ppo(tmp_path), resume=True).close()  # the lock dies with its process


def test_in_use_by_this_process(tmp_path: Path):
    held = RunDirectory(ppo(tmp_path), resume=False)
    with pytest.raises(RunError, match="in use by another process"):
        RunDirectory(ppo(tmp_path), resume=True)
    held.close()


def test_a_changed_recipe_is_refused_key_by_key(tmp_path: Path):
    directory = RunDirectory(ppo(tmp_path), resume=False)
    (directory.path / "metrics.jsonl").write_text('{"iteration": 1}\n')
    directory.close()
    saved = (directory.path / "config.yaml").read_text()
    with pytest.raises(ConfigError) as caught:
        RunDirectory(ppo(tmp_path, train={"weight_decay": 0.5}, algorithm={"kl": {"coef": 0.3}}, seed=4), resume=True)
    lines = str(caught.value).splitlines()
    assert [line for line in lines if line.startswith("  - ")] == [
        "  - algorithm.kl.coef: was 0.2, now 0.3",
        "  - train.weight_decay: was 0.0, now 0.5",
        "  - seed: was 0, now 4",
    ]
    assert (directory.path / "config.yaml").read_text() == saved


def test_what_may_change_may(tmp_path: Path):
    directory = RunDirectory(ppo(tmp_path), resume=False)
    (directory.path / "metrics.jsonl").write_text('{"iteration": 1}\n')
    directory.close()
    train = {"iterations": 9, "checkpoint_every": 5, "keep": 7, "log_every": 3, "rollouts_every": 4, "sinks": ["wandb"]}
    directory = RunDirectory(ppo(tmp_path, train=train, placement={"threads": 1}), resume=True)
    assert read_saved(directory.path)["train"]["iterations"] == 2, "not before the run is sure that it goes on"
    directory.write_recipe()
    directory.close()
    assert read_saved(directory.path)["train"]["iterations"] == 9
    assert {"weight_decay", "batch_size", "micro_batch_tokens"}.isdisjoint(key[-1] for key in MAY_CHANGE)


def test_every_key_that_may_change_exists():
    keys = {("train", key) for key in accord.PPORecipe.model_fields["train"].annotation.model_fields}
    keys |= {("train", key) for key in accord.SFTRecipe.model_fields["train"].annotation.model_fields}
    keys |= {("critic", key) for key in accord.PPORecipe.model_fields["critic"].annotation.model_fields}
    keys |= {("placement", key) for key in accord.PPORecipe.model_fields["placement"].annotation.model_fields} | {
        ("output",)
    }
    keys |= {(key,) for key in accord.PPORecipe.model_fields}
    keys |= {("algorithm", key) for key in accord.PPORecipe.model_fields["algorithm"].annotation.model_fields}
    assert keys >= MAY_CHANGE


@pytest.mark.parametrize("there", [False, True], ids=["absent", "empty"])
def test_a_run_that_fails_before_learning_leaves_the_folder_as_it_was(there, base, tmp_path: Path):
    over = {"data": {"path": str(tmp_path / "no.jsonl")}}
    if there:
        (tmp_path / "run").mkdir()
    with pytest.raises(accord.DataError):
        run("sft", base, tmp_path, over)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
    run("sft", base, tmp_path)  # the mended recipe runs


def test_a_reward_that_fails_in_the_first_iteration_leaves_nothing_either(base, tmp_path: Path):
    """The commonest first mistake: the mended function runs with the same command."""
    config = recipe_dict("ppo", base, tmp_path)
    (tmp_path / "rewards.py").write_text("def brevity(prompts, responses):\n    return [1 / 0]\n")
    with pytest.raises(RewardError, match="ZeroDivisionError"):
        accord.train(config, quiet=True)
    assert not (tmp_path / "run").exists()
    assert len(run("ppo", base, tmp_path).metrics) == 2


def test_nor_does_its_tracker(base, tmp_path: Path):
    """The mended recipe runs with the same command, whatever the tracker had begun to write."""
    pytest.importorskip("tensorboard")
    config = recipe_dict("ppo", base, tmp_path, {"train": {"sinks": ["tensorboard"]}})
    good = (tmp_path / "rewards.py").read_text()
    fails = (
        f"import os\n\ndef brevity(prompts, responses):\n    raise ValueError(os.listdir({str(tmp_path / 'run')!r}))\n"
    )
    (tmp_path / "rewards.py").write_text(fails)
    with pytest.raises(RewardError, match="'tensorboard'"):
        accord.train(config, quiet=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "rewards.py").write_text(good)
    assert len(accord.train(config, quiet=True).metrics) == 2


def test_a_folder_that_cannot_be_filled_is_left_as_it_was(tmp_path: Path, monkeypatch):
    def full() -> dict[str, str]:
        raise OSError("no space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(RunError, match=r"the recipe could not be written to .*no space left"),
    ):
        patch.setattr("accord.training.run.environment", full)  # the recipe itself is written by then
        RunDirectory(ppo(tmp_path), resume=False)
    assert not (tmp_path / "run").exists()
    RunDirectory(ppo(tmp_path), resume=False).close()


def test_what_wandb_keeps_goes_as_well(tmp_path: Path):
    directory = RunDirectory(ppo(tmp_path), resume=False)
    (directory.path / "wandb" / "offline-run-1").mkdir(parents=True)
    (directory.path / "wandb" / "latest-run").symlink_to("offline-run-1")
    (directory.path / ".wandb-id").write_text("0123")
    directory.close()
    assert not directory.path.exists()


def test_what_others_put_into_the_folder_stays(tmp_path: Path):
    directory = RunDirectory(ppo(tmp_path), resume=False)
    (directory.path / "tensorboard").mkdir()
    (directory.path / "thesis.tex").write_text("mine")
    directory.close()
    assert {path.name for path in directory.path.iterdir()} >= {"tensorboard", "thesis.tex", "config.yaml"}


def test_what_was_learnt_stays_when_a_later_iteration_fails(base, tmp_path: Path):
    config = recipe_dict("ppo", base, tmp_path)
    (tmp_path / "rewards.py").write_text(
        "calls = []\n\ndef brevity(prompts, responses):\n    calls.append(1)\n"
        "    return [1 / (2 - len(calls))] * len(responses)\n"
    )
    with pytest.raises(RewardError):
        accord.train(config, quiet=True)
    assert (tmp_path / "run" / "checkpoints" / "step-000001").is_dir()
