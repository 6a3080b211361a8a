"""Paths of the command line: `~` in them, and whether what they name can be written, before any work is done for it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from tempfile import TemporaryFile

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


def try_folder(folder: Path, option: str) -> None:
    """See that a new or empty folder can be made and written into; nothing stays of the attempt.

    Args:
        folder: to be made later.
        option: that gave it.

    Raises:
        ConfigError: it cannot be: a file is in the way, or nobody may write there.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    made: list[Path] = []
    try:
        for path in reversed(missing):
            path.mkdir()
            made.append(path)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option} {folder} cannot be written: {error.strerror}: {error.filename or folder}"
        ) from error
    finally:
        for path in reversed(made):
            path.rmdir()
