"""What the outside sees: names, registries, imports, configs, documented metrics."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import accord
from accord.algorithms import ALGORITHMS
from accord.cli import COMMANDS, GROUPS
from accord.config import RECIPES, PolicyGradient, RolloutRecipe, build, load
from accord.recipes import BUILDERS
from accord.training.console import COLUMNS
from accord.training.metrics import describe
from contract.sources import REPOSITORY
from recipes.tiny_runs import run

PUBLIC = [
    "PPO",
    "AccordError",
    "AccordWarning",
    "BCORecipe",
    "CPORecipe",
    "CSFTRecipe",
    "ClassifyRecipe",
    "ConfigError",
    "DPORecipe",
    "DataError",
    "DistillRecipe",
    "Example",
    "GRPORecipe",
    "GenerationError",
    "KTORecipe",
    "LabelledResponse",
    "LabelledText",
    "LabelledTokens",
    "Message",
    "ModelError",
    "ORPORecipe",
    "OnlineDPORecipe",
    "PPORecipe",
    "PreferencePair",
    "Prompt",
    "RLOORecipe",
    "ReMaxRecipe",
    "ReinforceRecipe",
    "RejectionRecipe",
    "RewardError",
    "RewardRecipe",
    "Rollout",
    "Run",
    "RunError",
    "SFTRecipe",
    "SimPORecipe",
    "StepwiseExample",
    "TrainingError",
    "generate",
    "merge",
    "train",
]


def test_public_names_are_these_and_no_others():
    assert accord.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(accord, name).__doc__, name
        assert name in dir(accord)
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        accord.Trainer  # noqa: B018


@pytest.mark.parametrize(
    "module",
    ["accord", "accord.config", "accord.types", "accord.errors", "accord.cli", "accord.data", "accord.forecast.advice"],
)
def test_imports_no_torch(module):
    """Invariant 9."""
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'transformers', 'peft', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_registries_have_the_same_keys():
    keys = set(RECIPES)
    assert set(BUILDERS) == set(ALGORITHMS) == set(COLUMNS) == keys
    training = {*GROUPS["Learn from examples"], *GROUPS["Learn from rollouts"]}
    assert {name for name, (module, _) in COMMANDS.items() if module == "accord.cli.train"} == keys == training
    assert set(GROUPS["Learn from rollouts"]) == {
        n for n, recipe in RECIPES.items() if issubclass(recipe, RolloutRecipe)
    }
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
    for name, recipe in RECIPES.items():
        assert recipe.model_fields["algorithm"].default.type == name
        assert BUILDERS[name].__module__ == f"accord.recipes.{name}"
        assert ALGORITHMS[name].__module__ == f"accord.algorithms.{name}"


def test_each_recipe_has_its_page():
    pages = {path.stem for path in (REPOSITORY / "docs" / "algorithms").glob("*.md")}
    assert pages == set(RECIPES)


CONFIGS = sorted((REPOSITORY / "examples" / "configs").glob("*.yaml"))


def test_there_is_a_config_for_each_recipe():
    assert {load(path)["algorithm"]["type"] for path in CONFIGS} == set(RECIPES)


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_each_config_parses_into_its_recipe(path: Path):
    layer = load(path)
    recipe = build(RECIPES[layer["algorithm"]["type"]], layer)
    assert build(type(recipe), recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize("kind", RECIPES)
def test_every_metric_that_is_logged_is_documented(kind, model_folder: Callable[[str], Path], tmp_path: Path):
    over: dict[str, Any] = {}
    policy_gradient = isinstance(RECIPES[kind].model_fields["algorithm"].default, PolicyGradient)
    if not issubclass(RECIPES[kind], RolloutRecipe):
        over = {"data": {"eval_fraction": 0.25}, "algorithm": {"sft_coef": 0.5} if kind in ("dpo", "simpo") else {}}
    elif policy_gradient:  # with a rate so large that steps are skipped, and counted
        over["algorithm"] = {"kl": {"use": "loss"}, "ratio_guard": 1.0001, "epochs": 4, "correction": "mask"}
        over["train"] = {"learning_rate": 0.02, "warmup": 0, "iterations": 3}
    done = run(kind, model_folder("llama"), tmp_path, over)
    names = {name for row in done.metrics for name in row}
    assert {name for name in names if describe(name) is None} == set()
    assert names > {"iteration", "step", "tokens/trained", "tokens/per_second", "time/iteration", "memory/peak_gib"}
    if policy_gradient:
        assert {"ppo/steps_skipped", "ppo/loss/kl", "env/reward/brevity"} <= names
    shown = {column.metric for column in COLUMNS[kind]}
    assert shown <= names  # the console has no column that stays empty
