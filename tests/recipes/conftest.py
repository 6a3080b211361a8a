"""One small trained reward model and one trained adapter, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.tiny_runs import run


@pytest.fixture(scope="session")
def base(model_folder: Callable[[str], Path]) -> Path:
    """The base of most recipes here."""
    return model_folder("llama")


@pytest.fixture(scope="session")
def reward_adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model as an adapter on the base."""
    return run("reward", base, tmp_path_factory.mktemp("reward")).model


@pytest.fixture(scope="session")
def reward_classifier(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with all its weights."""
    return run("reward", base, tmp_path_factory.mktemp("classifier"), {"adapter": None}).model


@pytest.fixture(scope="session")
def sft_adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that SFT has moved off its start."""
    return run("sft", base, tmp_path_factory.mktemp("sft"), {"train": {"learning_rate": 0.02}}).model
