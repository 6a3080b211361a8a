"""From the runs of `learning.py` to one JSON, two tables and the plots."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from pathlib import Path

from contest.plan import BEST_OF, GUIDE, GUIDE_TASK
from contest.plots import draw_contest
from contest.series import Run, chosen

LEVELS = {"addition": 0.5, "sentiment": 0.2}
"""Score on training prompts that `responses to reach` counts up to."""


def write_results(folder: Path, results: Path, about: str) -> None:
    """Collect what has run in `folder`, and write learning.json and learning.md; `about` says how it was made. Of methods that
    have not run there, the results of before stay."""
    results.mkdir(exist_ok=True)
    file = results / "learning.json"
    before = json.loads(file.read_text()) if file.is_file() else {"base": {}, "runs": []}
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]
    anew = {_identity(run)[:4] for run in runs}
    runs = sorted([*(run for run in before["runs"] if _identity(run)[:4] not in anew), *runs], key=_identity)
    base = {int(n): judged for n, judged in before["base"].items()}
    base |= {n: json.loads(path.read_text()) for n in (1, *BEST_OF) if (path := _base(folder, n)).is_file()}
    file.write_text(json.dumps({"base": base, "runs": runs}, indent=1) + "\n")
    contest = [run for run in runs if run["part"] == "contest"]
    guide = [run for run in runs if run["part"] == "guide"]
    parts = ["# What each algorithm learns\n", about, *contest_table(contest)]
    parts += [f"\n![{picture.stem}]({picture.name})" for picture in draw_contest(contest, results)]
    parts += guide_table([run for run in contest if _in_guide(run)] + guide, base)
    (results / "learning.md").write_text("\n".join(parts) + "\n")
    print(f"{len(runs)} runs -> {results / 'learning.md'}")


def _identity(run: Run) -> tuple[str | float, ...]:
    return tuple(run[key] for key in ("part", "task", "label", "library", "rate", "seed"))


def _base(folder: Path, best_of: int) -> Path:
    return folder / f"base-{GUIDE_TASK}-{best_of}.json"


def _in_guide(run: Run) -> bool:
    """Whether a run of the contest is one that the guide would make again."""
    return run["task"] == GUIDE_TASK and run["library"] == "accord" and run["label"] in GUIDE


def contest_table(runs: list[Run]) -> list[str]:
    """A row for each method and library."""
    lines = [
        "\n## Beside trl\n",
        "| task | method | library | steps x rows, type | search | rate | held-out score, mean ± sd | KL, nats "
        "| responses to reach | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    series = defaultdict(list)
    for run in runs:
        series[run["task"], run["label"], run["library"]].append(run)
    for (task, label, library), found in sorted(series.items()):
        work = f"{found[0]['iterations']} x {found[0]['batch']}, {found[0]['dtype']}"
        lines.append(f"| {task} | {label} | {library} | {work} | {searched(found)} | {row(chosen(found), task)}")
    return lines


def searched(runs: list[Run]) -> str:
    """How many rates were compared, by how many seeds each."""
    seeds = Counter(run["rate"] for run in runs)
    return f"{len(seeds)} rates x {min(seeds.values())} seeds"


def row(runs: list[Run], task: str) -> str:
    """Rate, score, KL, responses to reach the task's level, seeds."""
    scores = [run["held_out"]["score"] for run in runs]
    spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    kl = statistics.mean(run["held_out"]["kl"] for run in runs)
    reached = [reach(run, LEVELS[task]) for run in runs]
    known = [value for value in reached if value is not None]
    need = f"{statistics.median(known):.0f}" if known else "–"
    if 0 < len(known) < len(runs):
        need += f" ({len(known)} of {len(runs)})"
    return f"{runs[0]['rate']:g} | {statistics.mean(scores):.3f}{spread} | {kl:.2f} | {need} | {len(runs)} |"


def reach(run: Run, level: float) -> float | None:
    """Responses after which the mean score of three iterations in a row is at the level."""
    curve = [point for point in run["curve"] if point.get("score") is not None]
    if run["method"] in ("dpo", "kto"):
        return None
    for n in range(2, len(curve)):
        if statistics.mean(point["score"] for point in curve[n - 2 : n + 1]) >= level:
            return float(curve[n]["samples"])
    return None


def guide_table(runs: list[Run], base: dict[int, Run]) -> list[str]:
    """Best-of-n of the base, then each method."""
    lines = [
        f"\n## Methods beside each other ({GUIDE_TASK})\n",
        "| method | rate | held-out score, mean ± sd of seeds | KL, nats | responses to reach | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for n, judged in base.items():
        name = "base" if n == 1 else f"best of {n}"
        lines.append(f"| {name} | – | {judged['score']:.3f} | {_best_of_kl(n):.2f} | – | – |")
    series = defaultdict(list)
    for run in runs:
        series[run["label"]].append(run)
    for label, found in series.items():
        lines.append(f"| {label} | {row(chosen(found), GUIDE_TASK)}")
    return lines


def _best_of_kl(n: int) -> float:
    """Upper bound log n - (n - 1) / n (Beirami et al. 2024, arXiv:2401.01879)."""
    from math import log

    return log(n) - (n - 1) / n
