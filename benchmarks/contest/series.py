"""The runs of one method with one library."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

Run = dict[str, Any]


def chosen(runs: list[Run]) -> list[Run]:
    """Of one series the runs at the rate with the best mean score on training prompts, among those with the most seeds; of two
    equal ones at the lower."""
    rates: dict[float, list[Run]] = defaultdict(list)
    for run in runs:
        rates[run["rate"]].append(run)
    return max(rates.values(), key=lambda found: (len(found), _mean(found), -found[0]["rate"]))


def _mean(runs: list[Run]) -> float:
    return statistics.mean(run["train"]["score"] for run in runs)
