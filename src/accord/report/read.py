"""What a run directory holds, as plain data. Whatever a kill left unfinished is left out, and counted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from accord.errors import RunError
from accord.training.metrics import number

Points = list[tuple[float, float | None]]
"""(iteration, value) of one metric; None where the value was not finite."""


@dataclass(frozen=True)
class Sample:
    """One rollout, as kept in `rollouts/`."""

    iteration: int
    prompt: str
    response: str
    score: float | None
    kl: float | None
    length: int | None
    finish_reason: str
    scores: Mapping[str, float | None] = field(default_factory=dict)


@dataclass
class RunData:
    """Everything the page is made from."""

    path: Path
    config: dict[str, Any]
    config_text: str
    rows: list[dict[str, Any]]
    environment: dict[str, Any]
    first: list[Sample]
    last: list[Sample]
    remarks: list[str]
    """What could not be read."""

    @property
    def kind(self) -> str:
        """The recipe: `sft`, `reward`, `ppo`, ..."""
        algorithm = self.config.get("algorithm")
        named = algorithm.get("type") if isinstance(algorithm, dict) else None
        return str(named or "run")

    def names(self) -> list[str]:
        """Every metric of any row, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def points(self, name: str) -> Points:
        """Where a metric was logged, and what it was; rows without it (between evaluations) are no points."""
        return [(row["iteration"], _finite(row[name])) for row in self.rows if name in row]

    def values(self, name: str) -> list[float]:
        """The finite values of a metric, in order."""
        return [value for _, value in self.points(name) if value is not None]


def read_run(run_dir: Path) -> RunData:
    """Read a run directory.

    Raises:
        RunError: there is no run there, or its config cannot be read.
    """
    config_file = run_dir / "config.yaml"
    if not config_file.is_file():
        raise RunError(
            f"no run in {run_dir}: it has no config.yaml. Give the `output` folder of a training run, "
            "such as `accord report runs/ppo`"
        )
    config_text = config_file.read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(config_text)
    except yaml.YAMLError as error:
        raise RunError(f"{config_file} is not valid YAML, so the run cannot be reported: {error}") from error
    remarks: list[str] = []
    rows = _read_rows(run_dir / "metrics.jsonl", remarks)
    files = sorted((run_dir / "rollouts").glob("iteration-*.parquet"))
    last = _first_readable(reversed(files), remarks)
    first = _first_readable(files, []) if len(files) > 1 else []
    if first and last and first[0].iteration == last[0].iteration:
        first = []
    environment = _read_environment(run_dir / "environment.json", remarks)
    return RunData(
        run_dir, config if isinstance(config, dict) else {}, config_text, rows, environment, first, last, remarks
    )


def _read_rows(path: Path, remarks: list[str]) -> list[dict[str, Any]]:
    """Rows by iteration; where an iteration occurs twice, the later row is the one that counts."""
    if not path.is_file():
        return []
    rows: dict[float, dict[str, Any]] = {}
    damaged = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            rows[float(row["iteration"])] = row
        except (ValueError, TypeError, KeyError):
            damaged += bool(line.strip())
    if damaged:
        remarks.append(f"{damaged} line(s) of metrics.jsonl could not be read and are left out.")
    return [rows[iteration] for iteration in sorted(rows)]


def _read_environment(path: Path, remarks: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        remarks.append("environment.json could not be read.")
        return {}
    return content if isinstance(content, dict) else {}


def _first_readable(files: Iterable[Path], remarks: list[str]) -> list[Sample]:
    """The samples of the first file that is whole; a run of ten thousand files opens two of them."""
    import pyarrow
    import pyarrow.parquet

    for file in files:
        try:
            rows = pyarrow.parquet.read_table(file).to_pylist()
        except (OSError, pyarrow.ArrowInvalid):
            remarks.append(f"rollouts/{file.name} could not be read and is left out.")
            continue
        if rows:
            return [_sample(row) for row in rows]
    return []


def _sample(row: Mapping[str, Any]) -> Sample:
    prefix = "score/"
    scores = {name.removeprefix(prefix): _finite(value) for name, value in row.items() if name.startswith(prefix)}
    length = row.get("length")
    return Sample(
        iteration=int(row.get("iteration") or 0),
        prompt=str(row.get("prompt") or ""),
        response=str(row.get("response") or ""),
        score=_finite(row.get("score")),
        kl=_finite(row.get("kl")),
        length=None if length is None else int(length),
        finish_reason=str(row.get("finish_reason") or ""),
        scores=scores,
    )


def _finite(value: object) -> float | None:
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]


def shown(value: float | None) -> str:
    """A number as the page sets it, with a true minus sign."""
    return number(value).replace("-", "\N{MINUS SIGN}")


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return sum(values) / len(values) if values else None
