"""From the turns of `speed.py` to one JSON and one table."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from contest_speed.rows import ROWS, Row

Found = dict[str, Any]


def write_results(output: Path, results: Path, about: str, name: str) -> None:
    """Collect what has run in `output`, and write speed.json and speed.md; `about` says how it was made. What was measured before
    stays, but for the same row on the same machine in the same type."""
    results.mkdir(exist_ok=True)
    file = results / f"{name}.json"
    made = json.loads(file.read_text()) if file.is_file() else []
    made += [json.loads(path.read_text()) for row in ROWS if (path := output / f"{row.name}.json").is_file()]
    machines: dict[str, dict[str, Found]] = {}
    for one in made:
        place = f"{one['machine']}, {one['threads']} threads, base in {one['dtype']}"
        machines.setdefault(place, {})[one["row"]] = one
    file.write_text(json.dumps([one for found in machines.values() for one in found.values()], indent=1) + "\n")
    lines = ["# How fast, how small\n", "```", about.strip(), "```", ""]
    lines += ["Medians of all turns, smallest and largest in brackets; the factor is the median over turns."]
    for place, found in machines.items():
        lines += ["", f"## {place}", "", *of_machine(found)]
    (results / f"{name}.md").write_text("\n".join(lines) + "\n")
    print(f"{len(made)} rows -> {results / f'{name}.md'}")


def of_machine(found: dict[str, Found]) -> list[str]:
    """The rows that were measured on one machine, by their names."""
    lines = [f"Made at {', '.join(sorted({one['commit'] for one in found.values()}))}.", ""]
    lines += ["| work | side | | against | | factor | must reach | |", "|---|---|---|---|---|---|---|---|"]
    for row in ROWS:
        if row.name in found and row.measure != "growth":
            lines += table_lines(row, found[row.name])
    if "turns" in found.get("growth", {}):
        told = "Seconds a token, as a multiple of those of the smallest amount of work:"
        lines += ["", told, "", *growth(found["growth"])]
    return lines


def value(row: Row, answer: Found, pairs: int) -> float:
    """What counts of one turn."""
    if row.measure == "memory":
        return float(answer["peak_gib"])
    if row.measure in ("seconds", "share"):
        return float(answer["seconds"])
    return float((pairs if row.measure == "pairs" else answer["tokens"]) / answer["seconds"])


def table_lines(row: Row, found: Found) -> list[str]:
    """One line for each target of a row whose sides were both there."""
    if "failed" in found:
        return [f"| {row.title} | | failed: {found['failed']} | | | | | |"]
    sides = {label: [value(row, turn, found["pairs"]) for turn in turns] for label, turns in found["turns"].items()}
    lines = []
    for target in row.targets:
        if target.side in sides and target.against in sides:
            mine, theirs = sides[target.side], sides[target.against]
            middle = statistics.median(factor(row, *both) for both in zip(mine, theirs, strict=True))
            reached = middle <= target.reach if row.measure == "memory" else middle >= target.reach
            cells = [row.title, target.side, spread(mine), target.against, spread(theirs), f"{middle:.3g}"]
            lines.append(f"| {' | '.join(cells)} | {target.reach:g} | {'yes' if reached else 'no'} |")
    return lines


def factor(row: Row, mine: float, other: float) -> float:
    """How many times as fast; of memory how much of it; of a limit its share."""
    return other / mine if row.measure in ("seconds", "share") else mine / other


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.3g} [{min(values):.3g}–{max(values):.3g}]"


def growth(found: Found) -> list[str]:
    """Seconds a token at each amount of work, by kind."""
    (turns,) = found["turns"].values()
    kinds: dict[str, dict[str, float]] = {}
    for name in turns[0]["parts"]:
        kind, _, times = name.partition(" x")
        cost = [turn["parts"][name]["seconds"] / turn["parts"][name]["tokens"] for turn in turns]
        kinds.setdefault(kind, {})[times] = statistics.median(cost)
    factors = [f"×{times}" for times in next(iter(kinds.values()))]
    lines = [f"| | {' | '.join(factors)} |", "|---" * (len(factors) + 1) + "|"]
    for kind, costs in kinds.items():
        first = next(iter(costs.values()))
        lines.append(f"| {kind} | {' | '.join(f'{cost / first:.2f}' for cost in costs.values())} |")
    return lines
