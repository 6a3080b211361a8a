"""Rollouts to score."""

from __future__ import annotations

import pytest

from accord.types import Rollout


@pytest.fixture
def rollouts() -> list[Rollout]:
    texts = [("2+2=", "4", {"answer": "4", "level": 1}), ("3+3=", "five", {"answer": "6"}), ("1+1=", "2", {"level": 3})]
    return [
        Rollout((1, 2, 3), (4 + n, 5), (-0.1, -0.2), "stop", prompt, response, columns)
        for n, (prompt, response, columns) in enumerate(texts)
    ]
