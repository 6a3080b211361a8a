"""Where metrics go, and what happens when that fails."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from accord.errors import AccordWarning, ConfigError, RunError
from accord.training import sinks
from accord.training.sinks import JsonlSink, Tracker, open_sinks


def rows(path: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def write(path: Path, *iterations: int) -> None:
    sink = JsonlSink(path)
    for iteration in iterations:
        sink.log({"loss": iteration / 2}, iteration)
    sink.close()


def test_rows_are_readable_at_once(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.log({"iteration": 1.0, "step": 4.0, "tokens/total": 12.0}, 1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"iteration": 1, "step": 4, "tokens/total": 12.0}\n'


def test_values_that_json_lacks_become_null(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "m.jsonl")
    sink.log({"a": math.nan, "b": math.inf, "c": -math.inf, "step": math.nan, "d": 1.5}, 1)
    assert rows(tmp_path / "m.jsonl") == [{"iteration": 1, "a": None, "b": None, "c": None, "step": None, "d": 1.5}]


def test_truncate_drops_later_rows_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, 1, 2, 3, 4)
    sink = JsonlSink(path)
    sink.truncate_after(2)
    sink.log({"loss": 9.0}, 3)
    sink.close()
    assert [(row["iteration"], row["loss"]) for row in rows(path)] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert list(tmp_path.iterdir()) == [path]


def test_truncate_leaves_the_old_file_when_the_new_one_cannot_be_written(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "m.jsonl"
    write(path, 1, 2)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError("disk full")

    sink = JsonlSink(path)
    monkeypatch.setattr(sinks.os, "fsync", fail)
    with pytest.raises(RunError, match=r"metrics could not be written to .*: disk full\."):
        sink.truncate_after(1)
    assert path.read_bytes() == before


def test_torn_last_line_is_dropped_silently(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, 1, 2)
    with path.open("a") as file:
        file.write('{"iteration": 3, "lo')
    write(path, 3)
    assert [row["iteration"] for row in rows(path)] == [1, 2, 3]


def test_whole_last_line_without_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"iteration": 1, "loss": 0.5}')
    write(path, 2)
    assert [row["iteration"] for row in rows(path)] == [1, 2]


def test_damaged_line_in_the_middle_is_said(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"iteration": 1}\n\0\0\0\n{"iteration": 2}\n')
    with pytest.warns(AccordWarning, match=r"line 2 is not a row of metrics"):
        JsonlSink(path).truncate_after(5)
    assert [row["iteration"] for row in rows(path)] == [1, 2]


def test_file_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "m.jsonl")
    sink.close()
    with pytest.raises(ValueError, match="closed file"):
        sink.log({"loss": 1.0}, 1)


class Broken:
    """A tracker whose network went away at iteration 2."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def log(self, metrics, step: int) -> None:
        self.calls.append(step)
        if step == 2:
            raise ConnectionError("no route to host")

    def close(self) -> None:
        raise AssertionError("a dropped tracker is left alone")


def test_failing_tracker_is_said_once_and_left_alone() -> None:
    broken = Broken()
    tracker = Tracker("wandb", lambda: broken)
    tracker.log({"loss": 1.0}, 1)
    with pytest.warns(AccordWarning, match=r"wandb failed at iteration 2 \(ConnectionError: no route to host\)"):
        tracker.log({"loss": 1.0}, 2)
    tracker.log({"loss": 1.0}, 3)  # a second warning would be an error here
    tracker.close()
    assert broken.calls == [1, 2]


def test_tracker_that_cannot_start_does_not_stop_the_run(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise TimeoutError("login")

    monkeypatch.setitem(sinks.SINKS, "wandb", fail)
    with pytest.warns(AccordWarning, match="wandb could not be started"):
        opened = open_sinks(["wandb"], tmp_path, {})
    for sink in opened:
        sink.log({"loss": 1.0}, 1)
        sink.close()
    assert rows(tmp_path / "metrics.jsonl") == [{"iteration": 1, "loss": 1.0}]


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")]
)
def test_missing_package_is_an_error_with_the_cure(tmp_path: Path, monkeypatch, name: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"{name}, which is not installed: run `pip install accord\[track\]`"):
        open_sinks([name], tmp_path, {})


def test_unknown_tracker(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown tracker 'wanb'.*tensorboard, wandb, trackio"):
        open_sinks(["wanb"], tmp_path, {})


def test_fresh_run_refuses_old_rows_and_a_resumed_one_cuts_them(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", 1, 2, 3)
    with pytest.raises(RunError, match="--resume"):
        open_sinks([], tmp_path, {})
    (sink,) = open_sinks([], tmp_path, {}, resume_from=2)
    sink.close()
    assert [row["iteration"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_tensorboard_holds_the_scalars(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    opened = open_sinks(["tensorboard"], tmp_path, {})
    for iteration in (1, 2):
        for sink in opened:
            sink.log({"objective/kl": iteration / 4}, iteration)
    for sink in opened:
        sink.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("objective/kl")] == [(1, 0.25), (2, 0.5)]


def test_tracker_id_survives_a_resume_only(tmp_path: Path) -> None:
    path = tmp_path / "id"
    first = sinks._stable_id(path, fresh=True)
    assert sinks._stable_id(path, fresh=False) == first
    assert sinks._stable_id(path, fresh=True) != first
