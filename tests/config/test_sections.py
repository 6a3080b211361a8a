"""What holds for every section: help for each key, frozen, no unknown keys, bounds that bite, a schema for editors."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import ValidationError

from accord.config import (
    RECIPES,
    CriticConfig,
    DataConfig,
    ExampleTrain,
    KLConfig,
    LoraConfig,
    ModelConfig,
    PlacementConfig,
    PPOConfig,
    RewardConfig,
    RewardTerm,
    RolloutConfig,
    RolloutTrain,
    Section,
)
from accord.config.base import sections_in
from accord.config.optim import Choice


def all_sections() -> list[type[Section]]:
    found: list[type[Section]] = []
    queue: list[type[Section]] = list(RECIPES.values())
    while queue:
        section = queue.pop()
        if section not in found:
            found.append(section)
            queue += [below for field in section.model_fields.values() for below in sections_in(field.annotation)]
    return sorted(found, key=lambda section: section.__name__)


def test_the_sections_are_found():
    assert {KLConfig, LoraConfig, RewardTerm, RolloutTrain, PlacementConfig} <= set(all_sections())


@pytest.mark.parametrize("section", all_sections(), ids=lambda section: section.__name__)
def test_every_key_has_its_help(section):
    assert section.__doc__ and section.__doc__ != Section.__doc__
    for name, field in section.model_fields.items():
        one_choice = get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
        if not (one_choice or sections_in(field.annotation)):  # a section explains itself; a single choice is its name
            assert field.description, f"{section.__name__}.{name}"


@pytest.mark.parametrize("section", all_sections(), ids=lambda section: section.__name__)
def test_sections_are_frozen_and_refuse_unknown_keys(section):
    assert section.model_config["frozen"] is True
    if issubclass(section, Choice):  # takes any keyword; whether what it names has it is seen when that is loaded
        return
    assert section.model_config["extra"] == "forbid"


def test_a_value_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        KLConfig().coef = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("name", RECIPES)
def test_schema_for_editors(name):
    schema = json.loads(json.dumps(RECIPES[name].model_json_schema()))
    assert set(schema["properties"]) == set(RECIPES[name].model_fields)
    needed = {"model", "data", "output"} | ({"teacher"} if name == "distill" else set())
    assert schema["additionalProperties"] is False and set(schema["required"]) == needed


P = {"path": "p"}


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (RewardConfig, {"centre_coef": [-0.1]}),
        (KLConfig, {"coef": [-1], "target": [0, -1], "horizon": [0], "estimator": ["k4"], "use": ["both"]}),
        (
            PPOConfig,
            {
                "gamma": [0, 1.01],
                "lam": [-0.1, 1.01],
                "clip": [0],
                "value_clip": [0],
                "value_coef": [-1],
                "entropy_coef": [-1],
                "epochs": [0, 1.5],
                "minibatches": [0],
                "value_warmup": [-1],
                "reward_clip": [0],
                "missing_eos_penalty": [-1],
                "ratio_guard": [1],
                "type": ["grpo"],
            },
        ),
        (LoraConfig, {"r": [0], "alpha": [0], "dropout": [-0.1, 1], "method": ["dora"], "targets": [3]}),
        (ModelConfig, {"dtype": ["int8"], "path": [None]}),
        (
            DataConfig,
            {"limit": [0], "max_tokens": [1], "max_prompt_tokens": [0], "eval_fraction": [1, -0.1], "format": ["csv"]},
        ),
        (
            RolloutConfig,
            {
                "samples": [0],
                "max_new_tokens": [0],
                "temperature": [0, -1],
                "top_k": [-1],
                "top_p": [0, 1.1],
                "max_sequences": [0],
            },
        ),
        (
            ExampleTrain,
            {
                "batch_size": [0],
                "micro_batch_tokens": [0],
                "learning_rate": [0, -1e-5],
                "warmup": [-1],
                "min_learning_rate": [-0.1, 1.1],
                "weight_decay": [-1],
                "max_grad_norm": [0],
                "checkpoint_every": [-1],
                "keep": [0],
                "steps": [0],
                "epochs": [0],
                "schedule": ["step"],
                "sinks": [["mlflow"]],
                "log_every": [0],
                "optimizer": ["sgdd", {"lr": 1}],
                "head_learning_rate": [0],
                "lora_plus_ratio": [0],
            },
        ),
        (RolloutTrain, {"iterations": [0], "batch_size": [0], "rollouts_every": [-1]}),
        (PlacementConfig, {"type": ["slurm"], "threads": [0]}),
        (CriticConfig, {"source": ["none"], "start": ["random"], "learning_rate": [0]}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_values_out_of_bounds_are_refused(section: type[Section], values: dict[str, list[Any]]):
    given = P if "path" in section.model_fields and section.model_fields["path"].is_required() else {}
    section(**given)
    for key, bad in values.items():
        for value in bad:
            with pytest.raises(ValidationError) as caught:
                section(**(given | {key: value}))
            assert caught.value.errors()[0]["loc"][0] == key


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "nan"])
@pytest.mark.parametrize(
    ("section", "key"),
    [
        (PPOConfig, "reward_scale"),
        (PPOConfig, "clip"),
        (RewardTerm, "weight"),
        (KLConfig, "coef"),
        (ExampleTrain, "warmup"),
    ],
)
def test_a_number_is_a_finite_number(section, key, value):
    given = {"model": "m"} if section is RewardTerm else {}
    with pytest.raises(ValidationError, match="finite number"):
        section(**given, **{key: value})
