"""A run says what it will take, and at its end what it took."""

from __future__ import annotations

import json
import re

import pytest

from accord.cli import main
from accord.config import RECIPES, build
from accord.forecast.memory import forecast
from accord.machine import machine_memory
from accord.recipes import foresight, train
from recipes.tiny_runs import recipe_dict


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_forecast_and_measure_stand_side_by_side(kind, model_folder, tmp_path, capsys):
    recipe = build(RECIPES[kind], recipe_dict(kind, model_folder("llama"), tmp_path, {"train": {}}))
    done = train(recipe)
    said = capsys.readouterr().out
    last = done.metrics[-1]
    assert last["memory/forecast_gib"] > 0
    assert "  memory  fits in cpu (" in said
    told = f"{last['memory/forecast_gib']:.2f}"
    assert re.search(rf"memory +peak \d\.\d\d GiB \(.*\);\s+the forecast\s+was {told} GiB\s+\([+-]\d+%\)", said)
    # The rows are short, and the forecast of the run knows it.
    assert last["memory/forecast_gib"] * 2**30 <= forecast(recipe, foresight.device_of(recipe)).peak


def test_a_run_does_not_fail_for_want_of_a_forecast(model_folder, tmp_path, monkeypatch, capsys):
    from accord.errors import ModelError

    def fail(*_: object) -> None:
        raise ModelError("no shape")

    monkeypatch.setattr(foresight, "forecast", fail)
    done = train(build(RECIPES["sft"], recipe_dict("sft", model_folder("llama"), tmp_path)))
    assert "memory/forecast_gib" not in done.metrics[-1]
    assert "no forecast: no shape" in capsys.readouterr().out


def test_one_that_does_not_fit_is_told_with_what_would_help(model_folder, tmp_path, monkeypatch, capsys):
    given = recipe_dict("sft", model_folder("llama"), tmp_path)
    room = forecast(build(RECIPES["sft"], given), foresight.device_of(build(RECIPES["sft"], given))).peak - 1
    monkeypatch.setattr(foresight, "memory_bytes", lambda device: room)
    assert not foresight.foresee(build(RECIPES["sft"], given)).fits
    lines = foresight.lines(build(RECIPES["sft"], given))
    assert lines[0].startswith("does not fit in cpu (")
    assert lines[2].startswith("it would fit with --")
    assert machine_memory() > room


def test_ranks_share_the_batch_and_on_a_cpu_the_memory(monkeypatch, model_folder, tmp_path):
    given = recipe_dict("sft", model_folder("llama"), tmp_path)
    alone, several = (build(RECIPES["sft"], given, {"placement": {"type": kind}}) for kind in ("local", "torchrun"))
    whole = foresight.device_of(alone)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert foresight.device_of(alone) == whole and whole.count == 1
    assert (foresight.device_of(several).count, foresight.device_of(several).bytes) == (4, whole.bytes // 2)


def test_a_dry_run_says_it(model_folder, tmp_path, capsys):
    given = recipe_dict("dpo", model_folder("llama"), tmp_path)
    file = tmp_path / "dpo.yaml"
    file.write_text(json.dumps(given))
    assert main(["dpo", str(file), "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("# memory:")]
    assert len(lines) == 2
    assert lines[0].startswith("# memory: fits in cpu (")
