"""`accord data check`: what a file of feedback is, and what is wrong with it."""

from __future__ import annotations

import argparse


def run(command: str, words: list[str]) -> int:
    """Run the command; exit code 1 if a row cannot be used."""
    parser = argparse.ArgumentParser(prog="accord data", description="Look at feedback before training on it.")
    actions = parser.add_subparsers(dest="action", required=True)
    check_parser = actions.add_parser(
        "check", help="format, counts, lengths, and every problem with file, line and reason"
    )
    check_parser.add_argument("path", help="a .jsonl, .json or .parquet file, a datasets folder, or a hub name")
    check_parser.add_argument("--split", default="train", help="split of a dataset (default: train)")
    check_parser.add_argument("--model", help="measure lengths in tokens of this model, too")
    options = parser.parse_args(words)

    from rich.console import Console

    from accord.data import check, render

    report = check(options.path, options.split, _tokenizer(options.model) if options.model else None)
    render(report, Console(), shown=len(report.problems))
    return 1 if report.problems else 0


def _tokenizer(path: str):  # type: ignore[no-untyped-def]
    from accord.config import ModelConfig
    from accord.model.loading import load_tokenizer, locate

    return load_tokenizer(ModelConfig(path=path), locate(path))
