"""`accord export`: make a saved model ready for others, and push it to the hub."""

from __future__ import annotations

import argparse

from accord.cli.paths import try_folder, user_path
from accord.errors import ConfigError, RunError


def run(command: str, words: list[str]) -> int:
    """Run the command; see `accord.cli.main`."""
    options = _parser().parse_args(words)
    if options.private and options.push is None:
        raise ConfigError("--private says how to push: give --push REPO too")
    if options.dtype is not None and options.merge is None:
        raise ConfigError("--dtype is the type that --merge stores: give --merge FOLDER too")
    if options.merge is not None and options.merge.exists():
        raise RunError(f"{options.merge} is there already; choose a new folder, nothing was changed")
    if options.merge is not None:
        try_folder(options.merge, "--merge")
    from accord.model.publish import check_folder, check_push, push

    if options.push is not None:
        check_push(options.push)
    folder = options.model
    if options.merge is not None:
        import torch

        from accord.model.merging import merge

        folder = merge(options.model, options.merge, getattr(torch, options.dtype or "float32"))
        print(f"merged {options.model} into its base: {folder}")
    for note in check_folder(folder):
        print(f"note: {note}")
    print(f"whole: {folder}, with a card in {folder / 'README.md'}")
    if options.push is not None:
        print(f"pushed: {push(folder, options.push, options.private)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="accord export",
        description="Check a saved model or adapter, write its card (README.md) if it has none, and push it to the hub.",
    )
    parser.add_argument("model", type=user_path, help="folder of the model or adapter, such as runs/ppo/model")
    parser.add_argument(
        "--push", metavar="REPO", help="repository on the hub, such as me/my-model; made if it is not there"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is made")
    parser.add_argument(
        "--merge", type=user_path, metavar="FOLDER", help="first fold the adapter into its base, into this folder"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="type of merged weights (default: float32)"
    )
    return parser
