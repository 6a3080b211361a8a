"""`accord data check`: what a file of feedback is, and what is wrong with it. `accord data stackexchange`: feedback of a
Stack Exchange dump."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from accord.data.stackexchange_convert import StackExchangeReport


def run(command: str, words: list[str]) -> int:
    """Run the command; exit code 1 if `check` finds a row that cannot be used."""
    parser = argparse.ArgumentParser(prog="accord data", description="Look at feedback, or make it, before training.")
    actions = parser.add_subparsers(dest="action", required=True)
    check_parser = actions.add_parser(
        "check", help="format, counts, lengths, and every problem with file, line and reason"
    )
    check_parser.add_argument("path", help="a .jsonl, .json or .parquet file, a datasets folder, or a hub name")
    check_parser.add_argument("--split", default="train", help="split of a dataset (default: train)")
    check_parser.add_argument("--model", help="measure lengths in tokens of this model, too")
    _add_stackexchange(actions)
    options = parser.parse_args(words)
    return _check(options) if options.action == "check" else _stackexchange(options)


def _check(options: argparse.Namespace) -> int:
    from rich.console import Console

    from accord.data import check, render

    report = check(options.path, options.split, _tokenizer(options.model) if options.model else None)
    render(report, Console(), shown=len(report.problems))
    return 1 if report.problems else 0


def _tokenizer(path: str):  # type: ignore[no-untyped-def]
    from accord.config import ModelConfig
    from accord.model.loading import load_tokenizer, locate

    return load_tokenizer(ModelConfig(path=path), locate(path))


def _add_stackexchange(actions: Any) -> None:
    parser = actions.add_parser(
        "stackexchange",
        help="preference pairs, examples or prompts of a Stack Exchange dump",
        description="Write preference pairs, examples or prompts of a Stack Exchange dump, or of rows of questions with "
        "answers. score = round(log2(1 + votes)), plus 1 if accepted, -1 if votes are negative (arXiv:2112.00861).",
    )
    parser.add_argument(
        "dump",
        type=Path,
        help="Posts.xml (also .gz, .bz2), or a .jsonl, .json or .parquet file of questions with answers",
    )
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines to write; must be new")
    parser.add_argument(
        "--format", choices=("pairs", "sft", "prompts"), default="pairs", help="what to write (default: pairs)"
    )
    parser.add_argument("--max-pairs", type=int, default=10, help="most pairs of one question (default: 10)")
    parser.add_argument("--min-answers", type=int, default=2, help="fewest answers of a question (default: 2)")
    parser.add_argument("--limit", type=int, help="use at most so many questions")
    parser.add_argument(
        "--split",
        choices=("all", "train", "test"),
        default="all",
        help="questions by a hash of their id (default: all)",
    )
    parser.add_argument("--test-fraction", type=float, default=0.05, help="share of the split test (default: 0.05)")
    parser.add_argument("--no-margin", action="store_true", help="leave out `margin`, which the reward loss demands")
    parser.add_argument("--keep-closed", action="store_true", help="use closed questions, too")
    parser.add_argument(
        "--content",
        choices=("html", "markdown"),
        default="html",
        help="texts of rows; a dump's are HTML (default: html)",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the pairs of questions that have more (default: 0)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--processes", type=int, default=cores, help="turn HTML into Markdown (default: one for each core)"
    )


def _stackexchange(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from accord.data.stackexchange import StackExchangeOptions
    from accord.data.stackexchange_convert import convert_stackexchange

    chosen = StackExchangeOptions(
        format=options.format,
        max_pairs=options.max_pairs,
        min_answers=options.min_answers,
        limit=options.limit,
        split=options.split,
        test_fraction=options.test_fraction,
        margin=not options.no_margin,
        keep_closed=options.keep_closed,
        content=options.content,
        seed=options.seed,
        processes=options.processes,
    )
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, amount="")
            amount = f"{done / 1e6:,.0f} MB" if stage == "reading" else f"{done:,} questions"
            bars.update(tasks[stage], completed=done, total=total, amount=amount)

        report = convert_stackexchange(options.dump, options.output, chosen, tell)
    _tell(report, Console(), chosen.margin)
    return 0


def _tell(report: StackExchangeReport, console: Console, margin: bool) -> None:
    """What was written, and what was left out and why."""
    from rich.text import Text

    console.print(Text.assemble(("✓ ", "green"), f"{report.written:,} rows ({report.format}): {report.output}"))
    tallies = {
        "rows read": report.rows,
        "questions": report.questions,
        "answers": report.answers,
        "pairs": report.pairs,
    }
    for name, tally in tallies.items():
        if tally.total == 0:
            continue
        console.print(Text.assemble((f"\n{name:<10}", "bold"), f"{tally.total:>12,}"))
        console.print(f"  used    {tally.used:>12,}")
        for reason, count in tally.left_out.most_common():
            console.print(Text.assemble((f"  left out{count:>12,}  ", "yellow"), reason))
    for rejection in report.bad:
        console.print(Text.assemble("  ", (rejection.origin, "cyan"), f"  {rejection.reason}"))
    command = {"pairs": "reward", "sft": "sft", "prompts": "ppo"}[report.format]
    console.print(Text.assemble("\nnext  ", (f"accord {command} --data.path {quote(str(report.output))}", "green")))
    if report.format == "pairs" and margin:
        console.print(
            "      the reward loss demands the column `margin` where there is one; --no-margin leaves it out, as StackLLaMA does"
        )
