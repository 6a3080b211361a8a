"""Pictures of the runs of `learning.py`: learning curves, and held-out score against KL."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from contest.plan import CONTEST
from contest.series import Run, chosen

COLOURS = {"trl": "#c2571a", "accord": "#1f5fa8"}


def draw_contest(runs: list[Run], results: Path) -> list[Path]:
    """One picture a task: a column a method; above, the score on training prompts as responses are seen; below, held-out score
    against KL of every run, the search included."""
    mpl.rcParams |= {"svg.hashsalt": "accord", "svg.fonttype": "none", "font.size": 9}
    return [_draw_task(task, runs, results) for task in sorted({run["task"] for run in runs})]


def _draw_task(task: str, runs: list[Run], results: Path) -> Path:
    figure, axes = plt.subplots(2, len(CONTEST), figsize=(3 * len(CONTEST), 5.6), squeeze=False)
    for column, method in enumerate(CONTEST):
        above, below = axes[0][column], axes[1][column]
        above.set_title(method)
        for library, colour in COLOURS.items():
            series = [run for run in runs if (run["task"], run["label"], run["library"]) == (task, method, library)]
            if not series:
                continue
            _curves(above, chosen(series), colour, library)
            best = chosen(series)
            rest = [run for run in series if run not in best]
            for members, filled in ((best, True), (rest, False)):
                below.scatter(
                    [run["held_out"]["kl"] for run in members],
                    [run["held_out"]["score"] for run in members],
                    edgecolors=colour,
                    facecolors=colour if filled else "none",
                    s=28,
                )
        above.set_xlabel("responses (dpo, kto: rows) seen")
        below.set_xlabel("KL to the base, nats a response")
    axes[0][0].set_ylabel("score while training (dpo: margin, kto: loss)")
    axes[1][0].set_ylabel("held-out score")
    axes[0][0].legend(frameon=False)
    figure.suptitle(f"{task}: filled dots are the seeds at the chosen rate, hollow ones the other rates")
    figure.tight_layout()
    path = results / f"learning_{task}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def _curves(axes: Any, runs: list[Run], colour: str, label: str) -> None:
    """Mean of the seeds, with the lowest and the highest."""
    at: dict[float, list[float]] = defaultdict(list)
    for run in runs:
        for point in run["curve"]:
            if point.get("score") is not None:
                at[point["samples"]].append(point["score"])
    places = sorted(at)
    axes.plot(places, [statistics.mean(at[x]) for x in places], color=colour, label=label)
    axes.fill_between(
        places, [min(at[x]) for x in places], [max(at[x]) for x in places], color=colour, alpha=0.18, linewidth=0
    )
