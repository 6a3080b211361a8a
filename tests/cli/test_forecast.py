"""`accord forecast` as a person would call it: fast, without torch, and with errors that help."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from accord.cli import main
from forecast.recipes import LLAMA_7B, shape_folder

SECONDS = 2.0


@pytest.fixture
def folder(tmp_path):
    return shape_folder(tmp_path / "llama-7b", LLAMA_7B)


def words(folder, *more):
    return ["forecast", "ppo", "--model.path", folder, "--data.path", "prompts.jsonl", "--reward", "r.py:f", *more]


def test_it_prints_a_verdict_a_table_and_changes(folder, capsys):
    assert main(words(folder, "--device", "24GiB")) == 0
    text = capsys.readouterr().out
    assert text.startswith("ppo  does not fit in 24 GiB: peak")
    for part in ("KV cache", "optimiser", "activations", "logits tiles", "fragmentation", "Changes that make it fit"):
        assert part in text


def test_several_devices_and_json(folder, capsys):
    assert main(words(folder, "--device", "24GiB", "8xA100-80GB", "--json")) == 0
    small, large = json.loads(capsys.readouterr().out)
    assert (small["fits"], large["fits"]) == (False, True)
    assert small["changes"] and not large["changes"]
    assert large["device"]["count"] == 8
    assert main(words(folder, "--device=24GiB", "--json", "--longest", "64")) == 0
    shorter = json.loads(capsys.readouterr().out)
    assert shorter["peak_bytes"] < small["peak_bytes"]


def test_the_file_says_what_it_is(folder, tmp_path, capsys):
    file = tmp_path / "grpo.yaml"
    recipe = f"model: {{path: {folder}}}\ndata: {{path: prompts.jsonl}}\nreward: r.py:f\nalgorithm: {{type: grpo}}\n"
    file.write_text(recipe + "output: runs/grpo\n")
    assert main(["forecast", str(file), "--rollout.samples", "4", "--device", "A100-80GB"]) == 0
    assert capsys.readouterr().out.startswith("grpo")
    file.write_text(recipe.replace("r.py:f", "[{function: r.py:f}]") + "output: runs/grpo\n")
    assert main(["forecast", str(file), "--reward.0.weight", "2", "--device", "A100-80GB"]) == 0
    assert main(["forecast", "ppo", str(file)]) == 2
    assert "the recipe is for `accord grpo` (algorithm.type), and the command is `ppo`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--device", "24GigaBytes"], "unknown device '24GigaBytes'"),
        (["--device", "A100-8OGB"], "did you mean A100-80GB?"),
        (["--device"], "--device needs a value, such as --device 24GiB"),
        (["--longest", "none"], "--longest is one number of tokens"),
        (["--train.micro_batch", "64"], "did you mean `micro_batch_tokens`"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(folder, more, message, capsys):
    assert main(words(folder, *more)) == 2
    assert message in capsys.readouterr().err


def test_a_missing_model_gets_the_nearest_name(folder, capsys):
    assert main(words(folder.replace("7b", "8b"))) == 1
    assert f"did you mean {folder}?" in capsys.readouterr().err
    assert main(words("some-one/some-model")) == 1
    assert "hf download some-one/some-model config.json" in capsys.readouterr().err


def test_without_a_kind_it_asks_for_one(capsys):
    assert main(["forecast", "--model.path", "x"]) == 2
    assert "which recipe is this? Begin with a command (accord forecast ppo ...)" in capsys.readouterr().err
    assert main(["forecast", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: accord forecast RECIPE.yaml")


def test_it_imports_no_torch_and_takes_under_two_seconds(folder):
    """Processor time, so that a busy machine does not count; with the search for changes, which takes longest."""
    code = (
        "import sys; from accord.cli import main; code = main(sys.argv[1:]); "
        "bad = [m for m in ('torch', 'transformers', 'peft', 'datasets', 'numpy') if m in sys.modules]; "
        "print('imported', bad); sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code, *words(folder, "--adapter", "null", "--device", "24GiB")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "imported []"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS
