"""The runs of one method with one library."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

Run = dict[str, Any]


def chosen(runs: list[Run]) -> list[Run]:
    """The runs at the rate that has the most seeds; of one series."""
    rates = defaultdict(list)
    for run in runs:
        rates[run["rate"]].append(run)
    return max(rates.values(), key=lambda found: (len(found), found[0]["train"]["score"]))
