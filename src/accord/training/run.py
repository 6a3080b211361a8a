"""The run directory: who may use it, what lies in it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch
import yaml

from accord.config import Recipe, dump
from accord.errors import ConfigError, RunError
from accord.training.disk import writing
from accord.training.sinks import METRICS_FILE, TENSORBOARD, WANDB, WANDB_ID, parse_row
from accord.training.state import remove_partial

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
BEGUN = (".lock", f".{CONFIG}.partial")
"""What lies in a run's folder before its recipe does."""
MAY_CHANGE: set[tuple[str, ...]] = {
    ("train", key) for key in ("iterations", "steps", "epochs", "checkpoint_every", "keep", "sinks", "log_every")
}
MAY_CHANGE |= {("train", "learning_rate"), ("train", "max_grad_norm"), ("algorithm", "reward_clip")}
MAY_CHANGE |= {("train", "head_learning_rate"), ("critic", "learning_rate")}
MAY_CHANGE |= {("train", "eval_every"), ("train", "rollouts_every"), ("placement", "threads"), ("output",)}
MAY_CHANGE |= {("placement", "allocator")}
MAY_CHANGE |= {("push",)}
"""Keys that a resumed run may set anew: how long it goes on (the learning rate's schedule stretches along), what it writes
down, and what mends a run whose numbers ran away. Any other change would make it another run."""


@dataclass
class Run:
    """A finished run."""

    path: Path
    """The run directory."""
    metrics: list[dict[str, float]] = field(default_factory=list)
    """One row an iteration, those before a resume included."""

    @property
    def model(self) -> Path:
        """Folder of the trained model or adapter."""
        return self.path / "model"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"


class RunDirectory:
    """A run's folder, held for this process (and the ranks it learns with, of which the first writes) until `close`."""

    def __init__(self, recipe: Recipe, resume: bool) -> None:
        """Open or create the folder.

        Raises:
            RunError: it is in use by another process, or holds a run and `resume` is not set, or cannot be written.
            ConfigError: the run in it has another recipe, or what it holds is no run.
        """
        self.path = Path(recipe.output)
        self.recipe = recipe
        self.checkpoints = self.path / "checkpoints"
        self.rollouts = self.path / "rollouts"
        self.model = self.path / "model"
        self._lock: IO[str] | None = None
        if recipe.placement.type == "torchrun" and os.environ.get("RANK", "0") != "0":
            return
        used = is_used(self.path)
        if not resume:
            refuse_used(self.path)
        self._fresh = not used
        if resume and used:
            refuse_changed(self.path, recipe)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # nothing is there to go on from, so not what `writing` says
            raise RunError(f"output {self.path} cannot be made: {error.strerror}: {error.filename}") from error
        try:
            with writing("the recipe", self.path):
                self._lock = self._take_lock()
                if self._fresh:
                    self.write_recipe()
        except RunError:
            self.close()
            raise
        remove_partial(self.checkpoints)

    def write_recipe(self) -> None:
        """Note by what the run is made, and where. A run that goes on writes it once it is sure that it does."""
        _write_whole(self.path / CONFIG, dump(self.recipe))
        _write_whole(self.path / ENVIRONMENT, json.dumps(environment(), indent=1))

    def forget_rollouts(self, iterations: int) -> None:
        """Remove the rollouts of iterations after so many: a run that goes on from there makes its own."""
        for path in self.rollouts.glob("iteration-*.parquet"):
            number = path.stem.removeprefix("iteration-")
            if number.isdecimal() and int(number) > iterations:
                path.unlink()

    def _take_lock(self) -> IO[str]:
        lock = (self.path / ".lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise RunError(
                f"output {self.path} is in use by another process; wait for it, or choose another"
            ) from error
        return lock

    def close(self) -> None:
        """Let the folder go. If nothing was learnt in it, it is left as it was found, so that the mended recipe can use it."""
        if self._lock is None:
            return
        names = {CONFIG, ENVIRONMENT, ".lock", METRICS_FILE, TENSORBOARD, WANDB, WANDB_ID}
        if self._fresh and {entry.name for entry in self.path.iterdir()} <= names and not read_metrics(self.path):
            for entry in self.path.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            with suppress(OSError):  # not ours alone
                self.path.rmdir()
        self._lock.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.jsonl`."""
    file = path / METRICS_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = (parse_row(line) for line in lines)
    return [row for row in rows if row is not None]


def is_used(folder: Path) -> bool:
    """Whether a folder holds anything but what a run leaves that was killed while it began.

    Raises:
        RunError: it is a file.
    """
    if folder.is_file():
        raise RunError(f"output {folder} is a file; a run needs a folder of its own")
    return folder.exists() and any(entry.name not in BEGUN for entry in folder.iterdir())


def refuse_used(folder: Path) -> None:
    """Refuse a folder that holds anything.

    Raises:
        RunError: it does.
    """
    if is_used(folder):
        raise RunError(
            f"output {folder} is not empty. Continue the run in it with --resume, or choose another `output`; "
            "nothing was changed"
        )


def refuse_changed(folder: Path, recipe: Recipe) -> None:
    """Refuse to go on with a run by another recipe than the one it was made with.

    Raises:
        ConfigError: they differ where a resumed run may not change, or what lies in the folder is no run.
    """
    saved = read_saved(folder)
    if not saved:
        raise ConfigError(
            f"--resume: {folder} holds no run (there is no {CONFIG}), but other files, which a run would write over; give the "
            "`output` of a run, or leave out --resume and choose a new one. Nothing was changed"
        )
    changed = changed_keys(saved, recipe)
    if changed:
        raise ConfigError(
            f"--resume goes on with the recipe in {folder / CONFIG}, and this one differs:\n  - "
            + "\n  - ".join(changed)
            + "\nLeave these out, or start a new run with another `output`"
        )


def _write_whole(path: Path, text: str) -> None:
    """Write aside and rename, so that a kill leaves the old file or the new one."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_saved(output: str | Path) -> dict[str, Any]:
    """The recipe that a run directory was made with; empty if it holds none."""
    file = Path(output) / CONFIG
    if not file.is_file():
        return {}
    saved = yaml.safe_load(file.read_text(encoding="utf-8"))
    return saved if isinstance(saved, dict) else {}


def changed_keys(saved: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """A line for each key in which a recipe differs from the one that was saved, and that may not change on the way."""
    return [
        f"{'.'.join(key)}: was {old!r}, now {new!r}"
        for key, old, new in _differences(saved, yaml.safe_load(dump(recipe)))
        if key not in MAY_CHANGE
    ]


def _differences(old: Any, new: Any, at: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [row for key in keys for row in _differences(old.get(key), new.get(key), (*at, str(key)))]
    return [] if old == new else [(at, old, new)]


def environment() -> dict[str, str]:
    """Versions and machine, for the record."""
    facts = {"accord": _version("accord"), "commit": _commit(), "python": platform.python_version()}
    facts |= {name: _version(name) for name in ("torch", "transformers", "peft", "datasets")}
    facts |= {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.release()}",
    }
    return facts


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The commit of Accord's own checkout, if it runs from one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
