"""Paths of the command line: `~` in them, and whether what they name can be written, before any work is done for it."""

from __future__ import annotations

import argparse
from pathlib import Path

from accord.config.base import from_home


def user_path(text: str) -> Path:
    """A path as a person gives it: the shell leaves `--output=~/out` as it is, and `~` is the home folder there, too."""
    try:
        return Path(from_home(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
