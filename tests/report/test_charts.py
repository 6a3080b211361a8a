"""Ticks, buckets and lines."""

from __future__ import annotations

import json
import math
import re
from html import unescape
from xml.etree import ElementTree

import pytest

from accord.report.charts import (
    BOTTOM,
    BUCKETS,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Rule,
    Series,
    bucketed,
    line_chart,
    nice_ticks,
    tick_labels,
)  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1.0]), (0.13, 97, [0, 25, 50, 75, 100]), (-3, 5, [-4, -2, 0, 2, 4, 6])],
)
def test_ticks_are_round_and_cover(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(("low", "high"), [(5.0, 5.0), (0.0, 0.0), (1e-9, 3e-9), (-2e7, 1e8), (0.9999, 1.0001)])
def test_ticks_cover_any_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-12 and ticks[-1] >= high - 1e-12
    assert len(set(tick_labels(ticks))) == len(ticks), "each tick has its own label"


def test_tick_labels_share_their_decimals() -> None:
    assert tick_labels([0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert tick_labels([-2, 0, 2]) == ["−2", "0", "2"]
    assert tick_labels([0, 5e-6, 1e-5]) == ["0", "5e−6", "1e−5"]
    assert tick_labels([0, 5000, 10000]) == ["0", "5,000", "10,000"]


def test_buckets_are_means_with_their_extremes() -> None:
    points = [(float(i), float(i % 2)) for i in range(1000)]
    drawn = bucketed(points, limit=10)
    assert len(drawn) == 10
    assert [(p.y, p.low, p.high) for p in drawn] == [(0.5, 0.0, 1.0)] * 10


def test_spread_is_the_half_width_of_the_band() -> None:
    (point,) = bucketed([(1.0, 2.0)], [(1.0, 0.5)])
    assert (point.low, point.y, point.high) == (1.5, 2.0, 2.5)


def parse(svg: str | None) -> ElementTree.Element:
    assert svg is not None
    return ElementTree.fromstring(svg)


def places(root: ElementTree.Element, kind: str = "line c1") -> list[list[tuple[float, float]]]:
    lines = [element for element in root.iter("polyline") if element.get("class") == kind]
    return [[tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()] for line in lines]  # type: ignore[misc]


def test_line_runs_from_corner_to_corner() -> None:
    root = parse(line_chart("Score", [Series("score", [(1.0, 0.0), (2.0, 1.0)])]))
    assert places(root) == [[(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, TOP)]]


def test_value_that_is_not_finite_is_a_gap() -> None:
    values = [0.0, 1.0, None, 1.0, 0.0]
    root = parse(line_chart("Loss", [Series("loss", [(float(i), y) for i, y in enumerate(values)])]))
    assert [len(run) for run in places(root)] == [2, 2]


def test_one_point_is_a_dot() -> None:
    root = parse(line_chart("Loss", [Series("loss", [(1.0, 0.7)])]))
    assert places(root) == []
    assert len(list(root.iter("circle"))) == 1


def test_nothing_finite_is_no_chart() -> None:
    assert line_chart("Loss", [Series("loss", [(1.0, None)]), Series("none", [])]) is None


def test_values_over_many_decades_get_a_logarithmic_axis() -> None:
    root = parse(line_chart("Norm", [Series("norm", [(1.0, 0.1), (2.0, 10.0), (3.0, 1000.0)])]))
    ((first, middle, last),) = places(root)
    assert middle[1] == pytest.approx((first[1] + last[1]) / 2)


def test_rule_is_drawn_only_where_the_data_come_near() -> None:
    series = [Series("KL", [(1.0, 0.0), (2.0, 5.9)])]
    near, far = line_chart("KL", series, [Rule(6.0, "target 6")]), line_chart("KL", series, [Rule(60.0, "far")])
    assert near is not None and "target 6" in near
    assert far is not None and "far" not in far


def test_payload_is_json_and_labels_are_escaped() -> None:
    svg = line_chart("<b>", [Series("it's <i>", [(1.0, 0.5), (2.0, None), (3.0, -1.5)])])
    assert svg is not None and "<b>" not in svg and "<i>" not in svg
    found = re.search(r"data-chart='([^']*)'", svg)
    assert found is not None
    assert json.loads(unescape(found[1])) == [{"n": "it's <i>", "p": [[LEFT, 1, "0.500"], [WIDTH - RIGHT, 3, "−1.50"]]}]


def test_long_series_stays_small() -> None:
    points = [(float(i), math.sin(i / 50)) for i in range(10_000)]
    svg = line_chart("Wave", [Series("wave", points)])
    assert sum(len(run) for run in places(parse(svg))) <= BUCKETS
    assert svg is not None and len(svg) < 40_000
