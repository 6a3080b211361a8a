"""Where metrics go: always `metrics.jsonl`, and the trackers that a recipe names.

The file is part of the run: if it cannot be written, the run stops. A tracker is a convenience: if it fails (network,
quota, login), that is said once and training goes on without it.
"""

from __future__ import annotations

import json
import math
import os
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from accord.errors import AccordWarning, ConfigError, RunError
from accord.training.disk import writing

METRICS_FILE = "metrics.jsonl"
WHOLE = ("iteration", "step")
"""Counters, written without a decimal point."""
TENSORBOARD, WANDB, WANDB_ID = "tensorboard", "wandb", ".wandb-id"
"""What trackers keep in the run directory."""
TIMEOUT_SECONDS = 30.0
"""How long a tracker's server may take to answer at the start."""


class Sink(Protocol):
    """Takes one row of numbers an iteration."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the row of iteration `step`."""

    def close(self) -> None:
        """Write what is pending and let go."""


class JsonlSink:
    """One JSON object a line, flushed at once, so that a killed run keeps every finished iteration."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append a row. JSON has no NaN or infinity: such values become `null`.

        Raises:
            RunError: it cannot be written.
        """
        row = {"iteration": step, **{name: _json_number(name, value) for name, value in metrics.items()}}
        try:
            with writing(f"the metrics of iteration {step}", self.path):
                self._file.write(json.dumps(row, allow_nan=False) + "\n")
                self._file.flush()
        except RunError:
            with suppress(OSError):  # it tries to write the row once more, and is closed all the same
                self._file.close()
            raise

    def truncate_after(self, iteration: int) -> None:
        """Drop the rows of later iterations: they will run again from a checkpoint. Complete, or not at all."""
        self._file.close()
        kept = [line for line, row in _rows(self.path) if row["iteration"] <= iteration]
        aside = self.path.with_suffix(".tmp")
        with writing("metrics", self.path), aside.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Hand the rows to the disk. Closing twice is harmless."""
        if not self._file.closed:
            with writing("metrics", self.path), self._file:
                self._file.flush()
                os.fsync(self._file.fileno())


def _json_number(name: str, value: float) -> float | int | None:
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if name in WHOLE and number.is_integer() else number


def _drop_torn_line(path: Path) -> None:
    """Cut a last line that a kill left unfinished, or the next row would be glued to it; complete one that is whole."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole, newline, tail = content.rpartition(b"\n")
    if not tail:
        return
    with path.open("r+b") as file:
        if parse_row(tail.decode("utf-8", "replace")) is not None:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(len(whole) + len(newline))


def parse_row(line: str) -> dict[str, Any] | None:
    """The row that a line holds, or None for one that is damaged."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("iteration"), int | float) else None


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Lines and their rows; a damaged line in the middle is left out, and said."""
    result = []
    for index, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        row = parse_row(line)
        if row is not None:
            result.append((line, row))
        elif line.strip():
            warnings.warn(f"{path}, line {index} is not a row of metrics; it is dropped", AccordWarning, stacklevel=3)
    return result


class TensorboardSink:
    """Event files in `tensorboard/` of the run directory."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], resume_from: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        # Events of later iterations are hidden: they are about to be written again.
        purge = None if resume_from is None else resume_from + 1
        self._writer = SummaryWriter(str(run_dir / TENSORBOARD), purge_step=purge)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Weights & Biases. Project, entity, key and offline mode come from its own variables (`WANDB_PROJECT`,
    `WANDB_MODE=offline`, ...)."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], resume_from: int | None = None) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "accord"),
            name=run_dir.name,
            dir=str(run_dir),
            config=dict(config),
            id=_stable_id(run_dir / WANDB_ID, fresh=resume_from is None),
            resume="allow",
            settings=wandb.Settings(init_timeout=TIMEOUT_SECONDS, login_timeout=TIMEOUT_SECONDS),
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class TrackioSink:
    """Trackio, which keeps its database on this machine unless told otherwise."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], resume_from: int | None = None) -> None:
        try:
            import trackio
        except ImportError as error:
            raise _missing("trackio") from error
        self._trackio = trackio
        project = os.environ.get("TRACKIO_PROJECT", "accord")
        resume = "never" if resume_from is None else "allow"
        trackio.init(project=project, name=run_dir.name, config=dict(config), resume=resume)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(metrics), step=step)

    def close(self) -> None:
        self._trackio.finish()


def _missing(name: str) -> ConfigError:
    return ConfigError(
        f"train.sinks names {name}, which is not installed: run `pip install accord[track]`, "
        "or take it out of train.sinks"
    )


def _stable_id(path: Path, fresh: bool) -> str:
    """The tracker's id of this run: kept in the run directory, so that a resumed run goes on with the same curves."""
    if fresh or not path.exists():
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


class Tracker:
    """A sink that may fail: the first failure is said, and after it the sink is left alone."""

    def __init__(self, name: str, open_sink: Callable[[], Sink]) -> None:
        self.name = name
        self._sink: Sink | None = None
        self._try("could not be started", lambda: setattr(self, "_sink", open_sink()))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if (sink := self._sink) is not None:
            self._try(f"failed at iteration {step}", lambda: sink.log(metrics, step))

    def close(self) -> None:
        if (sink := self._sink) is not None:
            self._try("could not be closed", sink.close)
            self._sink = None

    def _try(self, what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except ConfigError:  # Not installed: the user can mend that before anything has run.
            raise
        except Exception as error:
            self._sink = None
            warnings.warn(
                f"{self.name} {what} ({type(error).__name__}: {error}); training goes on without it, "
                f"and {METRICS_FILE} has every number",
                AccordWarning,
                stacklevel=3,
            )


SINKS: dict[str, Callable[[Path, Mapping[str, Any], int | None], Sink]] = {
    "tensorboard": TensorboardSink,
    "wandb": WandbSink,
    "trackio": TrackioSink,
}
"""Trackers by the name in `train.sinks`."""


def check_sinks(names: Iterable[str]) -> None:
    """Look for the packages of trackers; nothing is opened.

    Raises:
        ConfigError: one is not installed.
    """
    for name in names:
        if find_spec(name) is None:
            raise _missing(name)


def open_sinks(
    names: Iterable[str], run_dir: str | Path, config: Mapping[str, Any], resume_from: int | None = None
) -> list[Sink]:
    """Open `metrics.jsonl` and the named trackers; the file comes first in the list.

    With `resume_from`, the last iteration that the checkpoint holds, later rows are dropped; without it, rows that are
    already there are an error.

    Raises:
        ConfigError: an unknown tracker, or one that is not installed.
        RunError: the run directory already holds metrics and the run is not resumed.
    """
    names, run_dir = list(names), Path(run_dir)
    for name in names:
        if name not in SINKS:
            raise ConfigError(f"unknown tracker {name!r} in train.sinks: known are {', '.join(SINKS)}")
    path = run_dir / METRICS_FILE
    if resume_from is None and path.exists() and path.stat().st_size:
        raise RunError(f"{path} already holds rows: resume that run with --resume, or choose another `output`")
    jsonl = JsonlSink(path)
    if resume_from is not None:
        jsonl.truncate_after(resume_from)
    return [jsonl, *(Tracker(name, lambda name=name: SINKS[name](run_dir, config, resume_from)) for name in names)]  # type: ignore[misc]
