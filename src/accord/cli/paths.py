"""Paths of the command line: `~` in them, and whether what they name can be written, before any work is done for it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from accord.config.base import from_home
from accord.errors import ConfigError


def user_path(text: str) -> Path:
    """A path as a person gives it: the shell leaves `--output=~/out` as it is, and `~` is the home folder there, too."""
    try:
        return Path(from_home(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def try_file(file: Path, option: str = "--output", example: str = "responses.jsonl") -> None:
    """See that a new file can be written; the folder it is to lie in is made, and the file is not there afterwards.

    Args:
        file: to be written later; a pipe or a device may be there already.
        option: that gave it.
        example: a good name for it.

    Raises:
        ConfigError: it is there already, is a folder, or cannot be written.
    """
    if file.is_file():
        raise ConfigError(f"{option} {file} is there already; give another name, nothing was changed")
    if file.is_dir():
        raise ConfigError(f"{option} {file} is a folder; give the name of a file, such as {file / example}")
    try:
        if file.exists():
            if not os.access(file, os.W_OK):
                raise PermissionError(None, "Permission denied", str(file))
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        file.resolve().unlink()
    except OSError as error:
        raise ConfigError(f"{option} {file} cannot be written: {error.strerror}: {error.filename}") from error
