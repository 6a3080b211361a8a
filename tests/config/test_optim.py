"""Names and keywords of optimisers and schedules, as far as they can be judged without torch."""

from __future__ import annotations

import inspect

import pytest
import torch
from pydantic import ValidationError
from transformers.optimization import SchedulerType

from accord.config import OptimizerConfig, PPORecipe, RewardRecipe, ScheduleConfig, SFTRecipe, TrainConfig, build, dump
from accord.config.optim import OPTIMIZERS, SCHEDULES, plain
from accord.errors import ConfigError

MINIMAL = {"model": {"path": "M"}, "data": {"path": "rows.jsonl"}, "output": "runs/x"}


def classes(module, ancestor: type) -> set[str]:
    return {
        plain(name)
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, ancestor) and kind is not ancestor and not name.startswith("_")
    }


def test_every_optimizer_of_torch_is_known_or_refused_with_a_reason():
    assert classes(torch.optim, torch.optim.Optimizer) <= OPTIMIZERS.keys() | OptimizerConfig.refused.keys()


def test_every_schedule_of_torch_and_transformers_is_known_or_refused_with_a_reason():
    scheduler = torch.optim.lr_scheduler
    assert classes(scheduler, scheduler.LRScheduler) <= SCHEDULES.keys() | ScheduleConfig.refused.keys()
    assert {plain(kind.value) for kind in SchedulerType} <= SCHEDULES.keys()


@pytest.mark.parametrize("written", ["adamw", "AdamW", {"name": "ADAMW"}])
def test_a_name_alone_or_with_keywords(written):
    assert TrainConfig(optimizer=written).optimizer.target == "torch.optim.AdamW"
    assert TrainConfig(optimizer=written).optimizer.keywords == {}


def test_names_are_read_leniently():
    assert OptimizerConfig(name="paged_adamw_8bit").target == "bitsandbytes.optim.PagedAdamW8bit"
    assert ScheduleConfig(name="one_cycle_lr").target == "torch.optim.lr_scheduler.OneCycleLR"
    assert OptimizerConfig(name="torch.optim.Adafactor").target == "torch.optim.Adafactor"


def test_numbers_of_yaml_that_look_like_text():
    keywords = TrainConfig(optimizer={"name": "adamw", "eps": "1e-8", "betas": [0.9, "9e-1"]}).optimizer.keywords
    assert keywords == {"eps": 1e-8, "betas": (0.9, 0.9)}


def test_a_recipe_is_dumped_as_it_was_written():
    given = {"optimizer": {"name": "sgd", "momentum": 0.9}, "schedule": {"name": "polynomial", "power": 2}}
    recipe = build(SFTRecipe, MINIMAL, {"train": given})
    assert recipe.model_dump(mode="json")["train"]["optimizer"] == given["optimizer"]
    assert build(SFTRecipe, MINIMAL).model_dump(mode="json")["train"]["schedule"] == "cosine"
    import yaml

    assert build(SFTRecipe, yaml.safe_load(dump(recipe))) == recipe


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (OptimizerConfig, "admw", r"unknown optimizer 'admw': did you mean `adamw`\?"),
        (OptimizerConfig, "xyz", "known: adadelta, adafactor, adagrad"),
        (OptimizerConfig, "lbfgs", "evaluates the loss several times"),
        (OptimizerConfig, "torch.optim.SparseAdam", "sparse gradients"),
        (OptimizerConfig, {"name": "adam", "lr": 1e-3}, "see train.learning_rate"),
        (OptimizerConfig, {"name": "adam", "weight_decay": 0.1}, "see train.weight_decay"),
        (OptimizerConfig, {"betas": [0.9, 0.95]}, r"betas was given without a `name`; write \{name: ..., betas: ...\}"),
        (OptimizerConfig, {"name": "adam", "eps": "nan"}, "`eps` is nan; a number must be finite"),
        (ScheduleConfig, "cosin", "did you mean `cosine`"),
        (ScheduleConfig, "SequentialLR", "give it as `scheduler=` to accord.PPO"),
        (ScheduleConfig, {"name": "cosine", "cycles": 2}, "schedule cosine has no keywords"),
        (ScheduleConfig, "greedy", "give its name as `metric`"),
        (ScheduleConfig, {"name": "StepLR", "metric": "sft/loss"}, "no use for `metric`"),
    ],
)
def test_what_cannot_work_is_refused_with_help(kind, given, message):
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(given)


def test_from_the_command_line_a_name_replaces_and_a_keyword_adds():
    file = {"train": {"optimizer": {"name": "sgd", "momentum": 0.9}}}
    assert build(SFTRecipe, MINIMAL, file, {"train": {"optimizer": "lion"}}).train.optimizer.keywords == {}
    both = build(SFTRecipe, MINIMAL, file, {"train": {"optimizer": {"nesterov": True}}}).train.optimizer.keywords
    assert both == {"momentum": 0.9, "nesterov": True}
    with pytest.raises(ConfigError, match=r"train\.optimizer.*given without a `name`"):
        build(SFTRecipe, MINIMAL, {"train": {"optimizer": "sgd"}}, {"train": {"optimizer": {"momentum": 0.5}}})


def test_rates_of_what_a_recipe_does_not_have():
    with pytest.raises(ConfigError, match="sft has no value or score head that learns"):
        build(SFTRecipe, MINIMAL, {"train": {"head_learning_rate": 1e-3}})
    for recipe in (PPORecipe, RewardRecipe):
        assert build(recipe, MINIMAL, {"train": {"head_learning_rate": 1e-3}}).train.head_learning_rate == 1e-3
    with pytest.raises(ConfigError, match="LoRA's two matrices"):
        build(SFTRecipe, MINIMAL, {"train": {"lora_plus_ratio": 16}, "adapter": None})


def test_the_schema_takes_a_name_alone():
    definitions = SFTRecipe.model_json_schema()["$defs"]
    choices = TrainConfig.model_json_schema()["properties"]["optimizer"]
    assert {"type": "string"} in definitions["OptimizerConfig"].get("anyOf", choices.get("anyOf", []))
