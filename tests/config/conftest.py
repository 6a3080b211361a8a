from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def least() -> dict[str, Any]:
    """All that a recipe must be given."""
    return {"model": {"path": "base"}, "data": {"path": "rows.jsonl"}, "output": "runs/x"}
