"""Advice is a recipe that was forecast, and that fits."""

from __future__ import annotations

import pytest

from accord.config import build, merge, parse_overrides
from accord.errors import ConfigError
from accord.forecast.advice import advise, changed
from accord.forecast.devices import parse_device
from accord.forecast.memory import forecast
from forecast.recipes import LLAMA_7B, NEOX_20B, TINY, recipe_of, shape_folder

CASES = {
    "7B, PPO, all weights": ("ppo", LLAMA_7B, {"adapter": None}, "80GiB"),
    "7B, PPO, LoRA": ("ppo", LLAMA_7B, {}, "24GiB"),
    "7B, SFT, LoRA, little room": ("sft", LLAMA_7B, {}, "16GiB"),
    "20B, SFT, LoRA": ("sft", NEOX_20B, {}, "24GiB"),
    "20B, PPO, LoRA": ("ppo", NEOX_20B, {}, "24GiB"),
    "7B, DPO, all weights": ("dpo", LLAMA_7B, {"adapter": None}, "A100-80GB"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_change_really_fits(name, tmp_path):
    kind, config, sections, where = CASES[name]
    folder, device = shape_folder(tmp_path, config), parse_device(where)
    recipe = recipe_of(kind, folder, **sections)
    assert not forecast(recipe, device).fits
    changes, least = advise(recipe, device)
    assert changes and least is None
    assert [change.cost for change in changes] == sorted(change.cost for change in changes)
    assert len({frozenset(key for key, _ in change.options) for change in changes}) == len(changes)
    for change in changes:
        # As a person would write it: the words of the advice on the command line.
        over = parse_overrides([word for key, value in change.options for word in (f"--{key}", value)])
        made = forecast(build(type(recipe), merge(recipe.model_dump(mode="json"), over)), device)
        assert made.fits
        assert made.peak == change.peak
        assert change.words.count("--") == len(change.options)


def test_lora_instead_of_all_weights_is_offered(tmp_path):
    changes, _ = advise(recipe_of("ppo", shape_folder(tmp_path, LLAMA_7B), adapter=None), parse_device("80GiB"))
    assert ("adapter.method", "lora") in [option for change in changes for option in change.options]


def test_smaller_micro_batches_come_first_where_they_do(tmp_path):
    recipe = recipe_of("sft", shape_folder(tmp_path, LLAMA_7B))
    peak = forecast(recipe, parse_device("80GiB")).peak
    changes, _ = advise(recipe, parse_device(f"{peak // 2**20 - 100}MiB"))
    assert changes[0].words == "--train.micro_batch_tokens 2048"


def test_what_cannot_fit_gets_the_least_that_was_found(tmp_path):
    recipe = recipe_of("sft", shape_folder(tmp_path, NEOX_20B))
    changes, least = advise(recipe, parse_device("1GiB"))
    assert changes == []
    assert least is not None and least.peak > 2**30


def test_on_cpu_the_allocator_is_among_the_changes(tmp_path):
    recipe = recipe_of("sft", shape_folder(tmp_path, LLAMA_7B | {"num_hidden_layers": 2}))
    now, lean = (
        forecast(made, parse_device("cpu:64GiB")).peak
        for made in (recipe, changed(recipe, [("placement.allocator", "lean")]))
    )
    assert lean < now
    changes, _ = advise(recipe, parse_device(f"cpu:{(now + lean) // 2 // 2**20}MiB"))
    assert "--placement.allocator lean" in [change.words for change in changes]


def test_changes_that_do_not_go_together_are_refused(tmp_path):
    recipe = recipe_of("sft", shape_folder(tmp_path, TINY))
    with pytest.raises(ConfigError):
        changed(recipe, [("train.micro_batch_tokens", "0")])
