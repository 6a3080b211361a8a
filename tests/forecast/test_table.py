"""What people and machines are told."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from accord.forecast.advice import advise
from accord.forecast.devices import parse_device
from accord.forecast.memory import forecast
from accord.forecast.table import as_json, render, short, size, verdict
from forecast.recipes import LLAMA_7B, TINY, recipe_of, shape_folder


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (512, "0 KiB"),
        (2048, "2 KiB"),
        (5 << 20, "5 MiB"),
        (3 << 29, "1.50 GiB"),
        (20 << 30, "20.0 GiB"),
        (2000 << 30, "2,000 GiB"),
    ],
)
def test_sizes_are_read_easily(count, text):
    assert size(count) == text


def told_of(folder, where, **sections):
    recipe = recipe_of("ppo", folder, **sections)
    device = parse_device(where)
    return recipe, device, forecast(recipe, device)


def printed(told, changes=(), least=None) -> str:
    file = io.StringIO()
    render(told, changes, least, Console(file=file, width=100, highlight=False))
    return file.getvalue()


def test_the_verdict_comes_first_and_the_changes_last(tmp_path):
    recipe, device, told = told_of(shape_folder(tmp_path, LLAMA_7B), "24GiB")
    changes, least = advise(recipe, device)
    lines = printed(told, changes, least).splitlines()
    assert lines[0].startswith("ppo  does not fit in 24 GiB: peak ")
    assert lines[0].endswith(f"in {told.peak_phase}")
    assert next(i for i, line in enumerate(lines) if "KV cache" in line) < next(
        i for i, line in enumerate(lines) if line.startswith("Changes that make it fit")
    )
    assert [line.split("   ")[0] for line in lines[-len(changes) :]] == [
        f"  {number}. {change.words}" for number, change in enumerate(changes, 1)
    ]
    header = next(line for line in lines if line.startswith("role"))
    assert header.split() == ["role", "what", "load", "rollout", "score", "update"]
    assert all(len(line) <= 100 for line in lines if not line.startswith("  "))


def test_one_that_fits_gets_no_advice(tmp_path):
    _, _, told = told_of(shape_folder(tmp_path, TINY), "8xA100-80GB")
    text = printed(told)
    assert text.startswith("ppo  fits in 8xA100-80GB")
    assert "Changes" not in text and "No change" not in text
    assert "note: placement.type: local uses one of the 8 devices" in text
    assert verdict(told).startswith("fits in 8xA100-80GB (80 GiB each): peak")


def test_one_that_nothing_helps_says_so(tmp_path):
    recipe, device, told = told_of(shape_folder(tmp_path, LLAMA_7B), "2GiB")
    changes, least = advise(recipe, device)
    text = printed(told, changes, least)
    assert "No change of the recipe that is known here makes it fit." in text
    assert "The least that was found: --" in text


def test_the_sums_of_the_columns_are_the_phases(tmp_path):
    _, _, told = told_of(shape_folder(tmp_path, LLAMA_7B), "24GiB")
    plain = json.loads(json.dumps(as_json(told, [], None)))
    for phase, terms in plain["phases"].items():
        assert sum(term["bytes"] for term in terms) == told.total(phase)
    assert plain["peak_bytes"] == max(told.total(phase) for phase in told.phases)
    assert plain["device"] == {"name": "24GiB", "bytes": 24 << 30, "count": 1}
    assert plain["fits"] is False


def test_the_short_form_is_two_lines(tmp_path):
    _, _, told = told_of(shape_folder(tmp_path, TINY), "24GiB")
    assert len(short(told)) == 2
    assert short(told)[0] == verdict(told)
    assert short(told)[1].startswith("of it process")
