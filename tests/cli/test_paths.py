"""Paths of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml

from accord.cli import main
from accord.cli.paths import try_file, try_folder, user_path
from accord.errors import ConfigError
from recipes.tiny_runs import recipe_dict


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and an empty one to stand in."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_the_home_folder_of_nobody():
    with pytest.raises(argparse.ArgumentTypeError, match="home folder it begins with is not known"):
        user_path("~nobody_of_this_name/x")


def test_trying_a_file_leaves_none(tmp_path: Path):
    try_file(tmp_path / "new" / "out.jsonl")
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]


def test_a_file_that_cannot_be_made_is_known_before():
    with pytest.raises(ConfigError, match=r"--output /proc/out.jsonl cannot be written"):
        try_file(Path("/proc/out.jsonl"))  # no folder to make files in, for root neither
    with pytest.raises(ConfigError, match=r"--output /dev is a folder"):
        try_file(Path("/dev"))


def test_trying_a_folder_leaves_none(tmp_path: Path):
    try_folder(tmp_path / "a" / "b", "OUTPUT")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    try_folder(tmp_path / "a", "OUTPUT")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_a_folder_that_cannot_be_made_leaves_none_either(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file" / "a", tmp_path / "new" / ("long" * 100), Path("/proc/a")):
        with pytest.raises(ConfigError, match=f"OUTPUT {folder} cannot be written"):
            try_folder(folder, "OUTPUT")
    assert list(tmp_path.rglob("*")) == [tmp_path / "file"]


def test_a_run_and_what_is_made_of_it_lie_in_the_home_folder(base: Path, home: Path, capsys):
    config = recipe_dict("sft", base, home) | {"output": "~/sft"}
    Path(home / "sft.yaml").write_text(yaml.safe_dump(config))
    assert main(["sft", "~/sft.yaml", "--quiet"]) == 0
    assert main(["sft", "--output=~/sft", "--resume", "--quiet"]) == 0
    assert main(["report", "~/sft"]) == 0
    assert main(["merge", "~/sft/model", "~/merged"]) == 0
    assert main(["export", "~/sft/model", "--merge=~/whole"]) == 0
    words = ["generate", "~/sft/model", "--prompt", "a film", "--max-new-tokens", "2", "--output=~/out.jsonl"]
    assert main(words) == 0, capsys.readouterr().err
    made = {"sft.yaml", "sft", "merged", "whole", "out.jsonl"}
    assert {path.name for path in home.iterdir()} >= made
    assert not list(Path().iterdir())
