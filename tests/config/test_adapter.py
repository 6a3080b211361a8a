from __future__ import annotations

import pytest

from accord.cli.options import recipe_help
from accord.config import METHODS, GRPORecipe, PPORecipe, PrefixConfig, SFTRecipe, build, dump, load, parse_overrides
from accord.errors import ConfigError


def adapter(least, words: str, recipe=SFTRecipe):
    return build(recipe, least, parse_overrides(words.split())).adapter


def test_each_method_by_its_name_and_lora_without_one(least):
    assert build(SFTRecipe, least).adapter.method == "lora"
    assert adapter(least, "--adapter.r 4").r == 4
    for name, section in METHODS.items():
        assert section.model_fields["method"].default == name
        chosen = adapter(least, f"--adapter.method {name}")
        assert type(chosen) is section and chosen.describe()
    assert adapter(least, "--adapter.method prefix --adapter.tokens 7") == PrefixConfig(tokens=7)
    assert adapter(least, "--adapter null") is None
    assert SFTRecipe(**least, adapter=PrefixConfig(tokens=2)).adapter.tokens == 2


def test_a_dumped_recipe_is_read_back(least, tmp_path):
    for name in METHODS:
        recipe = build(SFTRecipe, least, {"adapter": {"method": name}})
        (tmp_path / "x.yaml").write_text(dump(recipe))
        assert build(SFTRecipe, load(tmp_path / "x.yaml")) == recipe


def test_another_method_in_a_later_layer_begins_the_section_anew(least):
    file = {"adapter": {"r": 8, "alpha": 8}}
    assert build(SFTRecipe, least, file, {"adapter": {"method": "lora", "r": 2}}).adapter.alpha == 8
    assert build(SFTRecipe, least, file, {"adapter": {"method": "prefix"}}).adapter == PrefixConfig()
    prefix = {"adapter": {"method": "prefix", "tokens": 3}}
    assert build(SFTRecipe, least, prefix, {"adapter": {"projection": True}}).adapter.tokens == 3
    assert build(SFTRecipe, least, prefix, {"adapter": {"method": "ptuning"}}).adapter.tokens == 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--adapter.method prefx", "adapter: `method` must be one of lora, adalora, ia3, prompt, prefix, ptuning"),
        ("--adapter 3", "the section a mapping such as {method: lora} (given: 3)"),
        ("--adapter.method prefix --adapter.r 4", "`adapter.r`: it belongs to method lora, and the method here is prefix"),
        ("--adapter.tokens 4", "it belongs to method prompt and prefix and ptuning, and the method here is lora"),
        ("--adapter.method prefix --adapter.tokns 4", "unknown key `adapter.tokns`: did you mean `tokens`?"),
        ("--adapter.method prefix --adapter.tokens 0", "adapter.tokens: Input should be greater than or equal to 1"),
        ("--adapter.method prefix --adapter.hidden 9", "goes with `projection: true`"),
        ("--adapter.method prompt --adapter.init text", "`init: text` needs a `text`"),
        ("--adapter.method prompt --adapter.init random --adapter.text x", "`text` goes with `init: text`"),
        ("--adapter.method ptuning --adapter.layers 3", "they go with `encoder: lstm`"),
        ("--adapter.method ia3 --adapter.targets [k]", "`targets` and `feedforward` go together"),
        ("--adapter.method ia3 --adapter.targets [k] --adapter.feedforward [d]", "must be among `targets` ['k']"),
        ("--adapter.method adalora --adapter.target_r 12", "target_r (12) must be below init_r (12)"),
        ("--adapter.method adalora --adapter.warmup 0.7", "leave no steps for pruning between them"),
        (
            "--adapter.method adalora --adapter.warmup 8 --train.steps 10",
            "adapter.warmup (8 steps) and adapter.final (3) leave none of the run's 10 optimiser steps",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_with_its_key(least, words, message):
    with pytest.raises(ConfigError) as caught:
        adapter(least, words)
    assert message in str(caught.value)


def test_a_text_means_that_virtual_tokens_start_there(least):
    chosen = adapter(least, "--adapter.method prompt --adapter.text Sentiment:")
    assert (chosen.init, chosen.text) == ("text", "Sentiment:")


def test_the_steps_of_a_recipe_on_rollouts_are_known_too(least):
    short = {"adapter": {"method": "adalora", "warmup": 30, "final": 10}, "train": {"iterations": 5}}
    with pytest.raises(ConfigError, match="none of the run's 5 optimiser steps"):
        build(GRPORecipe, least, short)
    assert build(PPORecipe, least, short).adapter.schedule(80) == (30, 10)
    assert build(PPORecipe, least, {"adapter": {"method": "adalora"}}).adapter.schedule(1000) == (100, 300)


@pytest.mark.parametrize(
    ("method", "sft", "ppo"),
    [
        ("lora", 2e-4, 1.41e-5),
        ("adalora", 1e-3, 7.05e-5),
        ("ia3", 3e-3, 2.12e-4),
        ("prompt", 3e-2, 2.12e-3),
        ("prefix", 1e-2, 7.05e-4),
        ("ptuning", 1e-3, 7.05e-5),
    ],
)
def test_each_method_has_its_learning_rate(least, method, sft, ppo):
    over = {"adapter": {"method": method}}
    assert build(SFTRecipe, least, over).train.learning_rate == sft
    assert build(PPORecipe, least, over).train.learning_rate == ppo
    assert build(SFTRecipe, least, over, {"train": {"learning_rate": 0.5}}).train.learning_rate == 0.5
    assert SFTRecipe(**least, adapter=METHODS[method]()).train.learning_rate == sft


def test_the_help_lists_the_options_of_each_method():
    page = recipe_help("sft", SFTRecipe)
    for name in METHODS:
        assert f"\nadapter, method {name}\n  --adapter.method {name}" in page
    assert page.count("[default]") == 1
    for option in (
        "--adapter.dora true|false",
        "--adapter.orthogonality",
        "--adapter.feedforward",
        "--adapter.encoder mlp|lstm",
    ):
        assert option in page
