"""Recipes as files, run through the real command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from accord.cli import main
from recipes.tiny_runs import recipe_dict


@dataclass(frozen=True)
class Outcome:
    """What a person sees of a command."""

    code: int
    out: str
    error: str


@pytest.fixture
def base(model_folder: Callable[[str], Path]) -> Path:
    """The base of these tests."""
    return model_folder("llama")


@pytest.fixture
def accord_command(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`accord_command("ppo", {"train": ...}, "--resume")`: write the recipe, run the command, give what it said."""

    def call(kind: str, over: Mapping[str, Any] | None = None, *words: str) -> Outcome:
        file = tmp_path / f"{kind}.yaml"
        rewards = tmp_path / "rewards.py"
        written = rewards.read_text() if rewards.exists() else None
        file.write_text(yaml.safe_dump(recipe_dict(kind, base, tmp_path, over)))
        if written is not None:
            rewards.write_text(written)
        code = main([kind, str(file), *words])
        out, error = capsys.readouterr()
        assert "Traceback" not in error
        return Outcome(code, out, error)

    return call
