"""A base, and one small finished run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.tiny_runs import run


@pytest.fixture(scope="session")
def base(model_folder: Callable[[str], Path]) -> Path:
    """The base of these tests."""
    return model_folder("llama")


@pytest.fixture(scope="session")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished SFT run with an adapter."""
    return run("sft", base, tmp_path_factory.mktemp("finished")).path
