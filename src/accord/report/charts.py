"""Line charts as inline SVG: no library, no script needed to read them.

A chart shows up to five series over iterations, each with an optional band. Long runs are drawn in buckets: the line is
the bucket's mean, and where no band is given a faint one shows the bucket's lowest and highest value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from accord.report.read import Points, shown

WIDTH, HEIGHT = 400, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 26
BUCKETS = 240
"""Points drawn of one series; more than the chart has pixels to tell apart."""
FEW = 40
"""Up to so many points each is marked with a dot."""
LOG_FROM = 1000.0
"""Positive values that span more than this ratio get a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Point:
    """One drawn point: a value, or the mean of a bucket, with the spread around it."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart."""

    label: str
    points: Points
    spread: Points | None = None
    """Half-width of the band around each point, such as a standard deviation."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A horizontal line to compare with, such as a target."""

    value: float
    label: str


@dataclass(frozen=True)
class _Frame:
    """From data to pixels."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    logarithmic: bool = False
    ticks: Sequence[float] = field(default_factory=tuple)

    def x(self, value: float) -> float:
        low, high = self.x_range
        share = 0.5 if high == low else (value - low) / (high - low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = 0.5 if high == low else (value - low) / (high - low)
        return HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) that cover a range, about `count` of them."""
    if not low < high:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels with the same number of decimals, as many as the step needs."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    largest = max(abs(tick) for tick in ticks)
    if largest >= 10**6 or (0 < largest < 10**-3):
        return ["0" if tick == 0 else _exponent(tick) for tick in ticks]
    places = next((n for n in range(9) if abs(round(step, n) - step) < step * 1e-6), 9)
    return [f"{tick + 0.0:,.{places}f}".replace("-", "\N{MINUS SIGN}") for tick in ticks]


def _exponent(value: float) -> str:
    """`2.5e6`, without the zeros that say nothing."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "\N{MINUS SIGN}")


def bucketed(points: Points, spread: Points | None = None, limit: int = BUCKETS) -> list[Point]:
    """At most `limit` points; each is the mean of its bucket, so nothing is skipped over."""
    widths = dict(spread or [])
    size = max(1, math.ceil(len(points) / limit))
    result = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        x = sum(x for x, _ in bucket) / len(bucket)
        known = [(x, y) for x, y in bucket if y is not None]
        if not known:
            result.append(Point(x, None))
            continue
        y = sum(y for _, y in known) / len(known)
        halves = [width for x, _ in known if (width := widths.get(x)) is not None]
        if halves:
            half = sum(halves) / len(halves)
            result.append(Point(x, y, y - half, y + half))
        elif size > 1:
            result.append(Point(x, y, min(y for _, y in known), max(y for _, y in known)))
        else:
            result.append(Point(x, y))
    return result


def line_chart(name: str, series: Sequence[Series], rules: Sequence[Rule] = ()) -> str | None:
    """The chart as SVG, or None when no series has a finite value.

    A gap in a line is a value that was not finite. The points are in a `data-chart` attribute for the page's read-out.
    """
    lines = [bucketed(one.points, one.spread) for one in series]
    known = [point for line in lines for point in line if point.y is not None]
    if not known:
        return None
    frame = _frame(lines, known, rules)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_spoken(name, series))}" '
        f"data-chart='{_payload(series, lines, frame)}'>",
        f"<title>{escape(_spoken(name, series))}</title>",
        *_axes(frame),
        *_rules(frame, rules),
    ]
    for index, line in enumerate(lines, 1):
        parts += _band(frame, line, index)
    for index, line in enumerate(lines, 1):
        parts += _line(frame, line, index)
    return "".join([*parts, "</svg>"])


def _frame(lines: Sequence[Sequence[Point]], known: Sequence[Point], rules: Sequence[Rule]) -> _Frame:
    xs = [point.x for line in lines for point in line]
    ys = [value for point in known for value in (point.y, point.low, point.high) if value is not None]
    x_range = (min(xs), max(xs))
    if min(ys) > 0 and max(ys) / min(ys) > LOG_FROM:
        powers = range(math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys))) + 1)
        ticks = [10.0**power for power in powers][:: max(1, len(powers) // 5)]
        return _Frame(x_range, (10.0 ** powers[0], 10.0 ** powers[-1]), True, ticks)
    # A rule is drawn into view only where the data come near it; a far bound would flatten the curve.
    reach = 0.1 * (max(ys) - min(ys))
    ys += [rule.value for rule in rules if min(ys) - reach <= rule.value <= max(ys) + reach]
    ticks = nice_ticks(min(ys), max(ys))
    return _Frame(x_range, (ticks[0], ticks[-1]), False, ticks)


def _axes(frame: _Frame) -> Iterable[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    labels = [_exponent(tick) for tick in frame.ticks] if frame.logarithmic else tick_labels(frame.ticks)
    for tick, label in zip(frame.ticks, labels, strict=True):
        y = frame.y(tick)
        zero = " zero" if tick == 0 else ""
        yield f'<line class="grid{zero}" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>'
    low, high = frame.x_range
    for tick in [tick for tick in nice_ticks(low, high, 6) if low <= tick <= high and tick == int(tick)] or [low]:
        x = frame.x(tick)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:,.0f}</text>'


def _rules(frame: _Frame, rules: Sequence[Rule]) -> Iterable[str]:
    low, high = frame.y_range
    for rule in rules:
        if low <= rule.value <= high:
            y = frame.y(rule.value)
            above = y - 4 if y > TOP + 14 else y + 12
            yield f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text class="rule-label" x="{WIDTH - RIGHT}" y="{above:.1f}" text-anchor="end">'
            yield f"{escape(rule.label)}</text>"


def _runs(line: Sequence[Point]) -> list[list[Point]]:
    """The stretches of a line between values that are not finite."""
    runs: list[list[Point]] = [[]]
    for point in line:
        if point.y is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _band(frame: _Frame, line: Sequence[Point], index: int) -> Iterable[str]:
    for run in _runs(line):
        edges = [point for point in run if point.low is not None and point.high is not None]
        if len(edges) < 2:
            continue
        upper = [f"{frame.x(point.x):.1f},{frame.y(point.high or 0.0):.1f}" for point in edges]
        lower = [f"{frame.x(point.x):.1f},{frame.y(point.low or 0.0):.1f}" for point in reversed(edges)]
        yield f'<polygon class="band c{index}" points="{" ".join(upper + lower)}"/>'


def _line(frame: _Frame, line: Sequence[Point], index: int) -> Iterable[str]:
    for run in _runs(line):
        places = [(frame.x(point.x), frame.y(point.y or 0.0)) for point in run]
        if len(places) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            yield f'<polyline class="line c{index}" points="{path}"/>'
        if len(places) == 1 or len(line) <= FEW:
            radius = 3 if len(places) == 1 else 1.8
            yield from (f'<circle class="dot c{index}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>' for x, y in places)


def _payload(series: Sequence[Series], lines: Sequence[Sequence[Point]], frame: _Frame) -> str:
    """What the read-out under the pointer needs: pixels, iterations and formatted values of each series."""
    content = [
        {"n": one.label, "p": [[round(frame.x(p.x), 1), round(p.x), shown(p.y)] for p in line if p.y is not None]}
        for one, line in zip(series, lines, strict=True)
    ]
    return escape(json.dumps(content, separators=(",", ":")), quote=True)


def _spoken(name: str, series: Sequence[Series]) -> str:
    ends = []
    for one in series:
        values = [value for _, value in one.points if value is not None]
        if values:
            ends.append(f"{one.label} from {shown(values[0])} to {shown(values[-1])}")
    return f"{name}: {'; '.join(ends)}"
