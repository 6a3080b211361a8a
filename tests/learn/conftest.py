"""What learns here, and who teaches it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.tiny_runs import run, write_rows


@pytest.fixture(scope="session")
def base(model_folder: Callable[[str], Path]) -> Path:
    """A random model of 20,000 weights."""
    return model_folder("llama")


@pytest.fixture(scope="session")
def teacher(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, taught one answer by heart."""
    folder = tmp_path_factory.mktemp("teacher")
    rows = [{"prompt": f"the film {i} was", "completion": " good and slow"} for i in range(12)]
    over = {
        "data": {"path": write_rows(folder / "rows.jsonl", rows)},
        "adapter": {"r": 8, "alpha": 16},
        "train": {"steps": 60, "learning_rate": 0.03, "checkpoint_every": 0},
    }
    return run("sft", base, folder, over).model
