"""Recipes that cannot run: the key, what was given, and the nearest key that exists."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("kind", "over", "words"),
    [
        ("ppo", {"train": {"iteratons": 5}}, ["unknown key `train.iteratons`: did you mean `iterations`?"]),
        ("ppo", {"algorithm": {"kl": {"estimater": "k1"}}}, ["algorithm.kl.estimater", "did you mean `estimator`?"]),
        ("sft", {"modle": {"path": "x"}}, ["unknown key `modle`: did you mean `model`?"]),
        ("sft", {"train": {"batch_size": 0}}, ["train.batch_size", "given: 0"]),
        ("ppo", {"train": {"batch_size": 1}}, ["1 responses (train.batch_size) cannot be cut into 2 minibatches"]),
        ("sft", {"algorithm": {"type": "ppo"}}, ["the recipe is for `accord ppo`", "the command is `accord sft`"]),
        ("ppo", {"adapter": None, "critic": {"source": "adapter"}}, ["critic.source: adapter needs a frozen base"]),
        ("ppo", {"rollout": {"max_new_tokens": 64}}, ["leaves no room for a prompt"]),
        ("sft", {"seed": 2**63}, ["seed", "less than 9223372036854775808"]),
        ("sft", {"placement": {"device": "cuda:77"}}, ["placement.device", "cuda:77"]),
    ],
)
def test_the_message_names_the_key(kind, over, words, accord_command, tmp_path: Path):
    outcome = accord_command(kind, over)
    assert outcome.code == 2
    assert all(word in outcome.error for word in words), outcome.error
    assert not (tmp_path / "run").exists()


def test_every_fault_is_told_at_once(accord_command):
    outcome = accord_command("sft", {"train": {"stepz": 1, "batch_size": -1}, "seed": -3})
    assert [word in outcome.error for word in ("train.stepz", "train.batch_size", "seed")] == [True] * 3


def test_a_model_path_that_does_not_exist(accord_command, base, tmp_path: Path):
    outcome = accord_command("sft", {"model": {"path": str(base.parent / "lama")}})
    assert outcome.code == 1
    assert f"no model at {base.parent / 'lama'}" in outcome.error and f"did you mean {base}?" in outcome.error
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_model(accord_command, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    outcome = accord_command("sft", {"model": {"path": str(tmp_path / "empty")}})
    assert outcome.code == 1 and "holds no model" in outcome.error


def test_a_recipe_that_is_not_yaml(tmp_path: Path, capsys):
    from accord.cli import main

    (tmp_path / "bad.yaml").write_text("model: [")
    assert main(["sft", str(tmp_path / "bad.yaml")]) == 2
    assert "is not valid YAML" in capsys.readouterr().err
    assert main(["sft", str(tmp_path / "none.yaml")]) == 2
    assert "no recipe at" in capsys.readouterr().err
