"""`accord quickstart`: the whole road in one command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from accord.cli.paths import user_path

if TYPE_CHECKING:
    from rich.console import Console

    from accord.recipes.quickstart import Judgement, Result


def run(command: str, words: list[str]) -> int:
    """Run the command; see `accord.cli.main`."""
    parser = argparse.ArgumentParser(
        prog="accord quickstart",
        description="Pre-train a small model on film reviews, fine-tune it, learn a reward model from pairs, and teach it by "
        "PPO to write positive reviews. Offline, on the CPU.",
    )
    parser.add_argument(
        "--output",
        type=user_path,
        default=Path("runs/quickstart"),
        help="folder of the runs (default: runs/quickstart)",
    )
    parser.add_argument("--model", help="walk the same road with a base of your own: a folder or a hub name")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same run (default: 0)")
    options = parser.parse_args(words)

    from rich.console import Console

    console = Console(highlight=False)
    console.print("[dim]Loading torch and transformers …[/dim]")
    from accord.recipes.quickstart import run_road

    result = run_road(options.output, options.model, options.seed, lambda text: _stage(console, text))
    _show(console, result)
    return 0


def _stage(console: Console, text: str) -> None:
    console.print()
    console.rule(f"[bold]{text}[/bold]", align="left", style="dim")


def _show(console: Console, result: Result) -> None:
    from rich.table import Table

    _stage(console, "Before and after, on films that no stage has seen")
    for (prompt, before, p_before), (_, after, p_after) in zip(
        result.before.samples, result.after.samples, strict=True
    ):
        console.print(f"\n[bold]{prompt}[/bold]", markup=True)
        _sample(console, "before", before, p_before)
        _sample(console, "after", after, p_after)
    console.print()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("judged by the grammar itself", "before", "after"):
        table.add_column(title, justify="left" if "grammar" in title else "right")
    for title, key in (
        ("probability that a review is positive", "probability_positive"),
        ("sentences that are well formed", "well_formed"),
    ):
        table.add_row(title, _value(result.before, key), _value(result.after, key))
    console.print(table)
    console.print(
        f"\nreward model: {result.accuracy:.0%} of held-out pairs right    KL to the start: {result.kl:.1f} nats a review    "
        f"time: {int(result.seconds // 60)} min {result.seconds % 60:.0f} s"
    )
    _next(console, result.folder)


def _sample(console: Console, label: str, text: str, probability: float) -> None:
    from rich.padding import Padding
    from rich.text import Text

    line = Text.assemble(
        (f"{label:<7}", "dim"), (f"{probability:.2f} ", "green" if probability > 0.5 else "red"), text.strip()
    )
    console.print(Padding(line, (0, 0, 0, 2)))


def _value(judgement: Judgement, key: str) -> str:
    return f"{getattr(judgement, key):.2f}"


def _next(console: Console, folder: Path) -> None:
    from shlex import quote

    f = quote(str(folder))
    lines = [
        ("look at the run", f"{folder}/ppo/report.html"),
        ("sample from it", f"accord generate {f}/ppo/model --prompts {f}/prompts.jsonl --limit 3"),
        ("train it on", f"accord ppo --output {f}/ppo --resume --train.iterations 60"),
        ("as one model", f"accord merge {f}/ppo/model runs/positive-reviews"),
        ("on your own model", "accord quickstart --model PATH --output runs/mine"),
    ]
    console.print()
    for title, text in lines:
        console.print(f"  [dim]{title:<18}[/dim] {text}", soft_wrap=True)
