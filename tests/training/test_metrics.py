"""The table of metrics, its page, and how numbers are shown."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from accord.training.metrics import GROUPS, METRICS, PATTERNS, describe, duration, number, write_markdown

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_page_is_generated_from_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == write_markdown(), (
        "run: python -m accord.training.metrics > docs/metrics.md"
    )


def test_no_name_occurs_twice() -> None:
    assert len(METRICS) == sum(len(group) for group in GROUPS.values())


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_each_metric_is_explained(metric) -> None:
    assert metric.meaning and metric.healthy and metric.outside
    assert metric.low is None or metric.high is None or metric.low < metric.high
    assert "|" not in metric.meaning + metric.healthy + metric.outside, "would break the table of the page"
    assert f"`{metric.name}`" in PAGE.read_text(encoding="utf-8")


def test_describe_resolves_sources_and_nothing_else() -> None:
    metric = describe("env/reward/brevity")
    assert metric is not None
    assert (metric.name, metric.meaning) == ("env/reward/brevity", METRICS[PATTERNS[0]].meaning)
    assert describe("objective/kl") is METRICS["objective/kl"]
    assert describe("env/reward/") is None
    assert describe("env/reward_none/math").meaning == METRICS["env/reward_none/<source>"].meaning
    assert describe("env/reward_count/code/timeout").meaning == METRICS["env/reward_count/<source>/<event>"].meaning
    assert describe("env/reward_none/") is None is describe("env/reward_other/x")
    assert describe("objective/kL") is None


def test_bounds() -> None:
    clipped = METRICS["ppo/policy/clipfrac"]
    assert not clipped.is_outside(0.3)
    assert clipped.is_outside(0.31)
    assert METRICS["objective/kl"].is_outside(-1.5)
    assert METRICS["optim/grad_norm"].is_outside(math.nan)
    assert not METRICS["optim/grad_norm"].is_outside(1e9)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.234, "1.23"), (-0.12345, "-0.123"), (12345.6, "12,346"), (123.4, "123"), (1.41e-5, "1.41e-5"),
     (2.5e9, "2.50e9"), (0.00123, "0.00123"), (0.99999, "1.00"), (math.nan, "nan"), (-math.inf, "-inf"), (None, "nan")],
)  # fmt: skip
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (42.4, "42 s"), (59.9, "1 min 00 s"),
     (187, "3 min 07 s"), (7500, "2 h 05 min"), (3599.9, "1 h 00 min")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
