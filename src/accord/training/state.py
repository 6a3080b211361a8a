"""Checkpoints: complete or absent. Written aside, flushed to disk, renamed; a manifest tells sizes and hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from accord.errors import RunError
from accord.training.disk import writing

MANIFEST = "manifest.json"
TENSORS = "tensors.safetensors"
STATE = "state.json"
NAME = re.compile(r"step-\d{6,}")
"""Of a checkpoint's folder; one that a person renamed is none, and is left alone."""
PARTIAL = ".partial"
"""End of the name of a folder that a checkpoint is written to."""


@dataclass(frozen=True)
class Checkpoint:
    """What was read from a checkpoint."""

    path: Path
    iteration: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def write_checkpoint(
    folder: Path, iteration: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> Path:
    """Write `step-NNNNNN` (numbered by iteration) under `folder`, then remove all but the newest `keep` up to it. Later ones
    go, too: they were damaged when the run fell back, and will be written again.

    A kill at any moment leaves either the whole checkpoint or none: everything is written to a hidden folder beside it, and
    the rename comes last.

    Raises:
        RunError: it cannot be written. Nothing of it is left then, and those before stay.
    """
    final = folder / f"step-{iteration:06d}"
    with writing(f"the checkpoint of iteration {iteration}", folder):
        _write_whole(final, iteration, tensors, state)
    kept = [path for path in checkpoints(folder) if path <= final][-keep:]
    for other in checkpoints(folder):
        if other not in kept:
            shutil.rmtree(other)
    return final


def _write_whole(final: Path, iteration: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    aside = final.with_name(f".{final.name}{PARTIAL}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _write(aside, iteration, tensors, state)
    except Exception:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    _flush(final.parent)


def _write(aside: Path, iteration: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    aside.mkdir(parents=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside / TENSORS)
    (aside / STATE).write_text(json.dumps({"iteration": iteration, **state}, indent=1), encoding="utf-8")
    files = {name: {"bytes": (aside / name).stat().st_size, "sha256": _hash(aside / name)} for name in (TENSORS, STATE)}
    (aside / MANIFEST).write_text(json.dumps({"iteration": iteration, "files": files}, indent=1), encoding="utf-8")
    for name in (TENSORS, STATE, MANIFEST):
        _flush(aside / name)
    _flush(aside)


def remove_partial(folder: Path) -> None:
    """Remove what killed runs left of checkpoints that they had not finished."""
    for aside in folder.glob(f".step-*{PARTIAL}"):
        shutil.rmtree(aside, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir())


def steps_of(path: Path) -> int | None:
    """After how many optimiser steps a checkpoint was written; `None` if it cannot be read."""
    try:
        return int(json.loads((path / STATE).read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, KeyError):
        return None


def read_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and a line for each newer one that is not.

    Returns:
        `None` when there is no checkpoint at all.

    Raises:
        RunError: there are checkpoints, and none is whole.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(folder)):
        fault = find_fault(path)
        if fault is None:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            return Checkpoint(path, state["iteration"], load_file(path / TENSORS), state), damaged
        damaged.append(f"{path.name} is damaged ({fault})")
    if damaged:
        raise RunError(f"no checkpoint in {folder} is whole: {'; '.join(damaged)}. Start again with another `output`")
    return None, []


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint: a file missing, cut short or changed; `None` if it is whole."""
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"its manifest cannot be read: {type(error).__name__}"
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        size = file.stat().st_size
        if size != expected["bytes"]:
            return f"{name} has {size} bytes instead of {expected['bytes']}"
        if _hash(file) != expected["sha256"]:
            return f"{name} has other content than was written"
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
