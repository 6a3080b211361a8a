"""`accord orpo`: what its first numbers have to be; see also test_dpo.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from accord.training.metrics import describe
from recipes.tiny_runs import run


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_metrics_belong_together_and_it_learns(full, base, tmp_path: Path):
    sections = {"data": {"eval_fraction": 0.25}, "train": {"steps": 6, "learning_rate": 1e-3}}
    done = run("orpo", base, tmp_path, sections | ({"adapter": None} if full else {}))
    assert {name for row in done.metrics for name in row if describe(name) is None} == set()
    assert all(math.isfinite(value) for row in done.metrics for value in row.values())
    assert not [name for name in done.metrics[-1] if "perplexity" in name]
    for row in done.metrics:
        assert row["rewards/margins"] == pytest.approx(row["rewards/chosen"] - row["rewards/rejected"], abs=1e-4)
    assert done.metrics[-1]["rewards/margins"] > done.metrics[0]["rewards/margins"]
    assert {"eval/loss", "eval/rewards/accuracies", "eval/logps/chosen"} <= done.metrics[-1].keys()
