"""Every number that a run logs: what it means, what is healthy, and what to do when it is not.

One table, read by people (`docs/metrics.md` is generated from it), by the report and by the doctor:

    python -m accord.training.metrics > docs/metrics.md

Names are those of the field (classic TRL and its descendants). All values are floats, one per iteration.
"""

from __future__ import annotations

import math

from accord.training.metric_table import GROUPS, PATTERNS, Metric

METRICS: dict[str, Metric] = {metric.name: metric for group in GROUPS.values() for metric in group}
"""The table, by name."""


def describe(name: str) -> Metric | None:
    """What a logged name means; a reward source's own metrics are described under their own names."""
    if name in METRICS:
        return METRICS[name]
    for pattern in PATTERNS:
        prefix = pattern.partition("<")[0]
        if name.startswith(prefix) and name != prefix:
            general = METRICS[pattern]
            return Metric(name, general.meaning, general.healthy, general.outside, general.unit)
    return None


def number(value: float | None, digits: int = 3) -> str:
    """A value as people read it: about `digits` significant digits, whole thousands, exponents only when needed."""
    if value is None or math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    size = abs(float(f"{value:.{digits - 1}e}"))  # Rounded first: 0.9999 has the digits of 1.00.
    if size >= 10**7 or size < 10**-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    if size >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    places = digits - 1 - math.floor(math.log10(size))
    return f"{value:.{min(places, 6)}f}"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 07 s`, `2 h 05 min`: as exact as is of use."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def write_markdown() -> str:
    """The text of `docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        "<!-- Generated: python -m accord.training.metrics > docs/metrics.md -->",
        "",
        "Each iteration adds one row to `metrics.jsonl` in the run directory: a JSON object with these names. A value",
        "that is not finite is written as `null`. The report (`report.html`) draws them; trackers in `train.sinks`",
        "get the same numbers.",
    ]
    for title, metrics in GROUPS.items():
        lines += ["", f"## {title}", "", "| metric | meaning | healthy | otherwise |", "|---|---|---|---|"]
        for metric in metrics:
            unit = f" Unit: {metric.unit}." if metric.unit else ""
            lines.append(f"| `{metric.name}` | {metric.meaning}{unit} | {metric.healthy} | {metric.outside} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(write_markdown(), end="")
