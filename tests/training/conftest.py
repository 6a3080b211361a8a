"""What tests of learning share: a base, a recipe's parts, a plain learner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def base(model_folder: Callable[[str], Path]) -> Path:
    """The base of these tests."""
    return model_folder("llama")
