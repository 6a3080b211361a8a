"""Training commands: which value wins, the dry run, resuming."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from accord.cli import main
from accord.cli.train import read_recipe
from accord.errors import ConfigError
from accord.training.run import read_metrics, read_saved
from recipes.tiny_runs import recipe_dict, write_rows


@pytest.fixture
def file(base: Path, tmp_path: Path) -> str:
    path = tmp_path / "ppo.yaml"
    path.write_text(yaml.safe_dump(recipe_dict("ppo", base, tmp_path)))
    return str(path)


def test_defaults_then_file_then_options(file):
    recipe = read_recipe("ppo", [file, "--train.batch_size", "8", "--algorithm.kl.coef=0.05"])
    assert recipe.train.batch_size == 8 and recipe.algorithm.kl.coef == 0.05  # the command line
    assert recipe.algorithm.epochs == 2 and recipe.rollout.max_new_tokens == 6  # the file
    assert recipe.algorithm.clip == 0.2 and recipe.rollout.temperature == 1.0  # the defaults


def test_options_alone_are_a_recipe():
    recipe = read_recipe("sft", ["--model.path", "m", "--data.path", "d.jsonl", "--output", "o", "--adapter", "null"])
    assert recipe.adapter is None and recipe.train.learning_rate == 2e-5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.steps"], "option --train.steps has no value"),
        (["--train.steps", "5", "recipe.yaml"], "unexpected argument 'recipe.yaml'"),
        ([], "model: Field required"),
    ],
)
def test_words_that_are_no_recipe(words, message):
    with pytest.raises(ConfigError, match=message):
        read_recipe("sft", words)


def test_a_folder_called_like_a_flag(base, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = recipe_dict("sft", base, tmp_path)
    Path("sft.yaml").write_text(yaml.safe_dump(config))
    assert main(["sft", "sft.yaml", "--output", "./resume", "--quiet"]) == 0
    assert main(["sft", "sft.yaml", "--output", "./resume", "--resume", "--quiet"]) == 0
    assert len(read_metrics(tmp_path / "resume")) == 2 and not (tmp_path / "run").exists()


def test_dry_run_writes_nothing_and_loads_no_weights(file, tmp_path: Path, capsys, monkeypatch):
    def never(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("accord.model.loading.load_weights", never)
    before = sorted(tmp_path.rglob("*"))
    assert main(["ppo", file, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert "6 of 6 rows (prompt)" in out and f"would write to {tmp_path}/run" in out
    resolved = yaml.safe_load("\n".join(line for line in out.splitlines() if not line.startswith("#")))
    assert resolved["critic"]["source"] == "adapter" and resolved["train"]["iterations"] == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [("--model.path", "./nowhere"), ("--data.path", "./none.jsonl"), ("--reward", "./rewards.py:none")],
)
def test_dry_run_finds_what_is_not_there(option, value, file, capsys):
    assert main(["ppo", file, "--dry-run", option, value]) != 0
    assert value.split(":")[0].lstrip("./") in capsys.readouterr().err


def test_resume_needs_the_output_alone(file, tmp_path: Path, capsys):
    assert main(["ppo", file, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")  # quiet is quiet
    assert main(["ppo", "--output", f"{tmp_path}/run", "--resume", "--train.iterations", "3"]) == 0
    assert "resumed after iteration 2 of 3" in capsys.readouterr().out
    assert len(read_metrics(tmp_path / "run")) == 3
    assert read_saved(tmp_path / "run")["train"]["iterations"] == 3


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_resume_of_a_run_that_is_not_there(dry, file, tmp_path: Path, capsys):
    assert main(["ppo", "--output", f"{tmp_path}/nope", "--resume", "--train.iterations", "3", *dry]) == 2
    assert f"no run to go on with in {tmp_path}/nope" in capsys.readouterr().err
    assert main(["ppo", "--resume", *dry]) == 2
    assert "give it, such as --output runs/ppo" in capsys.readouterr().err
    assert not (tmp_path / "nope").exists()


def test_the_rehearsal_of_a_resumed_run(file, tmp_path: Path, capsys):
    assert main(["ppo", file, "--quiet"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    words = ["ppo", "--output", f"{tmp_path}/run", "--resume", "--dry-run"]
    assert main([*words, "--train.iterations", "3"]) == 0
    assert f"# ready: accord ppo would go on in {tmp_path}/run" in capsys.readouterr().out
    assert main([*words, "--algorithm.gamma", "0.5"]) == 2
    assert "this one differs:\n  - algorithm.gamma: was 1.0, now 0.5" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert main(["ppo", file, "--resume", "--dry-run", "--output", f"{tmp_path}/new"]) == 0
    assert f"would write to {tmp_path}/new" in capsys.readouterr().out


def test_what_a_person_sees(file, tmp_path: Path):
    """A real process: header, a line an iteration, where things are; and no traceback or progress bar in a pipe."""
    command = [sys.executable, "-m", "accord", "ppo", file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("accord ppo", "reward", "1 x brevity", "critic", "6 of 6 rows", f"{tmp_path}/run/report.html"):
        assert word in done.stdout
    assert "\x1b" not in done.stdout and "Traceback" not in done.stderr


def test_dry_run_calls_a_function_s_columns_by_their_names(file, tmp_path: Path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "the film", "prompts": ["another"]}])
    words = ["ppo", file, "--dry-run", "--data.path", rows, "--reward"]
    assert main([*words, f"{tmp_path}/rewards.py:brevity"]) == 0
    assert main([*words, f"{tmp_path}/rewards.py:letters"]) == 2
    error = capsys.readouterr().err
    assert "one is called 'prompts'" in error
    assert main([*words, f"{tmp_path}/rewards.py:letters", "--data.columns", "{prompts: other_prompts}"]) == 0


def test_dry_run_refuses_what_the_run_would_refuse(file, tmp_path: Path, capsys):
    assert main(["ppo", file, "--dry-run", "--reward", "[]"]) == 2
    assert "ppo needs a `reward`" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept.txt").write_text("something")
    assert main(["ppo", file, "--dry-run"]) == 1
    assert "is not empty" in capsys.readouterr().err
