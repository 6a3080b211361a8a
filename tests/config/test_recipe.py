from __future__ import annotations

import pytest
import yaml

from accord.config import (
    RECIPES,
    CriticConfig,
    DataConfig,
    ExampleRecipe,
    ExampleTrain,
    LoraConfig,
    ModelConfig,
    PPORecipe,
    RolloutTrain,
    SFTRecipe,
    build,
    dump,
)
from accord.errors import ConfigError

OBJECTS = {"model": ModelConfig(path="base"), "data": DataConfig(path="rows.jsonl"), "output": "runs/x"}


@pytest.mark.parametrize(
    ("name", "with_adapter", "without"),
    [("sft", 2e-4, 2e-5), ("reward", 1e-4, 1e-5), ("ppo", 1.41e-5, 3e-6)],
)
def test_learning_rate_by_recipe_and_by_what_learns(least, name, with_adapter, without):
    recipe = RECIPES[name]

    def rate(*layers):
        return build(recipe, least, *layers).train.learning_rate

    assert rate() == rate({"adapter": {"r": 4}}) == rate({"train": None}) == with_adapter
    assert rate({"train": {"learning_rate": None, "batch_size": 8}}) == with_adapter
    assert rate({"adapter": None}) == without
    assert rate({"train": {"learning_rate": 0.5}}) == rate({"adapter": None, "train": {"learning_rate": 0.5}}) == 0.5


def test_sections_given_as_objects_are_resolved_too():
    recipe = SFTRecipe(**OBJECTS, train=ExampleTrain(steps=5))
    assert recipe.train.learning_rate == 2e-4 and recipe.train.steps == 5
    assert SFTRecipe(**OBJECTS, adapter=None, train=ExampleTrain()).train.learning_rate == 2e-5
    assert SFTRecipe(**OBJECTS, train=ExampleTrain(learning_rate=0.5)).train.learning_rate == 0.5
    ppo = PPORecipe(**OBJECTS, adapter=LoraConfig(), critic=CriticConfig(), train=RolloutTrain(iterations=3))
    assert ppo.critic.source == "adapter" and ppo.train.learning_rate == 1.41e-5 and ppo.train.iterations == 3
    assert PPORecipe(**OBJECTS, adapter=None, critic=CriticConfig()).critic.source == "policy_trunk"


@pytest.mark.parametrize(
    ("change", "source"),
    [
        ({}, "adapter"),
        ({"critic": None}, "adapter"),
        ({"critic": {"start": "reward"}, "reward": ["m"]}, "adapter"),
        ({"adapter": None}, "policy_trunk"),
        ({"adapter": None, "critic": {"source": "model", "path": "c"}}, "model"),
        ({"critic": {"source": "policy_trunk"}}, "policy_trunk"),
    ],
)
def test_which_critic(least, change, source):
    assert build(PPORecipe, least, change).critic.source == source


@pytest.mark.parametrize("reward", ["rewards.py:f", {"function": "rewards.py:f"}])
def test_one_reward_may_stand_without_its_list(least, reward):
    for given in (reward, [reward]):
        (term,) = build(PPORecipe, least, {"reward": given}).reward
        assert term.function == "rewards.py:f"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter": None, "critic": {"source": "adapter"}}, "critic.source: adapter needs a frozen base"),
        (
            {"critic": {"start": "reward"}, "reward": ["rewards.py:f"]},
            "critic.start: reward copies a reward model, and `reward` names none",
        ),
        (
            {"train": {"batch_size": 10}, "rollout": {"samples": 4}},
            "train.batch_size (10) counts responses, so it must be a multiple of rollout.samples (4)",
        ),
        (
            {"train": {"batch_size": 3}},
            "3 responses (train.batch_size) cannot be cut into 4 minibatches (algorithm.minibatches)",
        ),
        (
            {"rollout": {"samples": 4, "dynamic_sampling": 2}},
            "drops groups whose responses all have one score, and ppo as it is set here learns from such groups, too",
        ),
        (
            {"data": {"max_tokens": 128}},
            "data.max_tokens (128) leaves no room for a prompt beside rollout.max_new_tokens (128)",
        ),
        (
            {"reward": ["a.py:f", "b.py:f", "m"]},
            "two rewards are called f; give each a `name` of its own",
        ),
        ({"adapter": None, "critic": {"source": "policy_trunk", "start": "reward"}}, "`start: reward` needs a critic"),
    ],
)
def test_options_that_exclude_each_other(least, change, message):
    with pytest.raises(ConfigError) as caught:
        build(PPORecipe, least, change)
    assert message in str(caught.value)


def test_prompt_limit(least):
    assert build(PPORecipe, least).prompt_limit == 1024 - 128
    for given, most, limit in ((77, 1024, 77), (77, 160, 32), (None, 160, 32)):
        assert build(PPORecipe, least, {"data": {"max_prompt_tokens": given, "max_tokens": most}}).prompt_limit == limit
    with pytest.raises(ConfigError, match=r"data.max_tokens \(128\) leaves no room for a prompt beside"):
        build(PPORecipe, least, {"data": {"max_prompt_tokens": 77, "max_tokens": 128}})


def test_warnings_are_those_of_the_sampling(least):
    late = {"algorithm": {"value_warmup": 7}, "train": {"iterations": 7}}
    assert "the value function alone will learn" in build(PPORecipe, least, late).warnings()[0]
    assert build(SFTRecipe, least).warnings() == build(PPORecipe, least).warnings() == []
    assert len(build(PPORecipe, least, {"rollout": {"top_p": 0.9}}).warnings()) == 1


@pytest.mark.parametrize("name", RECIPES)
def test_keys_that_would_do_nothing_are_refused(least, name):
    recipe, least = RECIPES[name], least | ({"teacher": "t"} if name == "distill" else {})
    every = {"data": {"train_on": "all"}}
    if name in ("sft", "csft"):
        build(recipe, least, every)
    else:
        with pytest.raises(ConfigError, match=rf"data.train_on: all is about imitating texts .*; {name} learns"):
            build(recipe, least, every)
    if not issubclass(recipe, ExampleRecipe):
        return
    often = {"train": {"eval_every": 5}}
    with pytest.raises(ConfigError, match=r"train.eval_every: 5 evaluates held-out rows, and none are held out: give"):
        build(recipe, least, often)
    build(recipe, least, often, {"data": {"eval_fraction": 0.1}})
    build(recipe, least, often, {"data": {"eval_path": "held_out.jsonl"}})


@pytest.mark.parametrize("name", RECIPES)
def test_a_resolved_recipe_with_all_its_keys_can_be_read_again(least, name):
    recipe = build(RECIPES[name], least | ({"teacher": "t"} if name == "distill" else {}))
    assert build(RECIPES[name], yaml.safe_load(dump(recipe))) == recipe


def test_output_is_a_folder_of_its_own(least, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert build(SFTRecipe, least | {"output": "~/runs/x"}).output == "/home/me/runs/x"
    assert build(SFTRecipe, least | {"output": "runs/~x"}).output == "runs/~x"
    for output, message in ((" ", "a folder of its own"), ("~nobody_of_this_name/x", "home folder")):
        with pytest.raises(ConfigError, match=message):
            build(SFTRecipe, least | {"output": output})
