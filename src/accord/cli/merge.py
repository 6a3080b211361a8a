"""`accord merge`: fold an adapter into its base."""

from __future__ import annotations

import argparse
from pathlib import Path

from accord.cli.paths import try_folder, user_path
from accord.errors import RunError


def run(command: str, words: list[str]) -> int:
    """Run the command; see `accord.cli.main`."""
    parser = argparse.ArgumentParser(
        prog="accord merge", description="Fold a PEFT adapter into its base and save an ordinary Hugging Face model."
    )
    parser.add_argument("adapter", type=user_path, help="folder of the adapter, such as runs/sft/model")
    parser.add_argument("output", type=user_path, help="folder to write; must be empty or new")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="type of the stored weights (default: float32; the sum itself is always made in float32)",
    )
    options = parser.parse_args(words)
    if options.output.is_file() or (options.output.exists() and any(options.output.iterdir())):
        raise RunError(f"{options.output} is not empty or no folder; choose another, nothing was changed")
    try_folder(options.output, "OUTPUT")
    import torch

    from accord.model.merging import merge

    merge(options.adapter, options.output, getattr(torch, options.dtype))
    print(f"merged {options.adapter} into its base: {options.output} ({options.dtype})")
    print(f"use it: {_use(options.output)}")
    return 0


def _use(folder: Path) -> str:
    """What commands take the model by."""
    from shlex import quote

    from accord.model.classifiers import read_labels
    from accord.model.loading import is_scorer, locate

    location, path = locate(str(folder)), quote(str(folder))
    if read_labels(location) is not None:
        return f"see {folder / 'README.md'}"
    return f"--reward {path}" if is_scorer(location) else f"--model.path {path}"
