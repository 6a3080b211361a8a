"""`accord sft`, `ppo` and their like: all training commands are one: read the recipe, check it, then load torch and run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.cli.paths import try_folder
from accord.config import (
    RECIPES,
    ClassifyRecipe,
    CSFTRecipe,
    DPORecipe,
    Recipe,
    RolloutRecipe,
    build,
    dump,
    load,
    merge,
    parse_overrides,
)
from accord.config.base import from_home
from accord.errors import ConfigError

if TYPE_CHECKING:
    from accord.rewards import RewardSource

FLAGS = ("resume", "dry-run", "quiet")


def run(command: str, words: list[str]) -> int:
    """Run a training command; see `accord.cli.main`."""
    started = time.perf_counter()  # before torch is imported, which is most of the start
    if "--help" in words or "-h" in words:
        from accord.cli.options import recipe_help

        print(recipe_help(command, RECIPES[command]))
        return 0
    flags = {flag for flag in FLAGS if f"--{flag}" in words}
    rest = [word for word in words if word not in {f"--{flag}" for flag in FLAGS}]
    recipe = read_recipe(command, rest, resume="resume" in flags)
    if "dry-run" in flags:
        return _dry_run(command, recipe, resume="resume" in flags)
    from accord.recipes import train

    train(recipe, resume="resume" in flags, quiet="quiet" in flags, started=started)
    return 0


def read_recipe(command: str, words: list[str], resume: bool = False) -> Recipe:
    """The recipe of a command line: defaults, then the file, then the overrides; on resume over what the run was made with.

    Raises:
        ConfigError: anything that cannot run.
    """
    layers: list[dict[str, Any]] = []
    if words and not words[0].startswith("--"):
        layers.append(load(words[0]))
        words = words[1:]
    layers.append(parse_overrides(words))
    given = merge(layers[0], layers[1]) if len(layers) == 2 else layers[0]
    if resume:
        layers = [*_saved_layer(given), *layers]
    recipe = RECIPES[command]
    named = given.get("algorithm")
    kind = named.get("type", command) if isinstance(named, dict) else command
    if kind != command:
        raise ConfigError(f"the recipe is for `accord {kind}` (algorithm.type), and the command is `accord {command}`")
    return build(recipe, *layers)


def _saved_layer(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The recipe that the run in `output` was made with, if there is one.

    Raises:
        ConfigError: there is none, and what is given is not enough to begin one.
    """
    try:
        folder = Path(from_home(str(given["output"])))
    except KeyError:
        raise ConfigError("--resume goes on with the run in `output`: give it, such as --output runs/ppo") from None
    except ValueError as error:
        raise ConfigError(f"output: {error}") from error
    saved = folder / "config.yaml"
    if saved.is_file():
        return [load(saved)]
    if "model" not in given:
        raise ConfigError(
            f"no run to go on with in {folder}: it has no config.yaml. Give the `output` of a run that was begun"
        )
    return []


def _dry_run(command: str, recipe: Recipe, resume: bool) -> int:
    """Check all that can be checked without weights, and print what would run."""
    from accord.model.loading import locate
    from accord.recipes.build import check_start, check_training
    from accord.recipes.family import check_family
    from accord.recipes.foresight import lines as foresight_lines
    from accord.recipes.rehearsal import check_surroundings, rehearse
    from accord.training.run import is_used, refuse_changed, refuse_used

    print(dump(recipe), end="")
    check_training(recipe.train)
    goes_on = resume and is_used(Path(recipe.output))
    if goes_on:
        refuse_changed(Path(recipe.output), recipe)
    else:
        refuse_used(Path(recipe.output))
    try_folder(Path(recipe.output), "output")
    check_surroundings(recipe)
    location = locate(recipe.model.source)
    check_start(recipe)
    on = f" on {location.base}" if location.adapter else ""
    print(f"# model: {location.adapter or location.base}{on}")
    reference = getattr(getattr(recipe, "reference", None), "path", None)
    if reference is not None:
        locate(reference)
    if isinstance(recipe, RolloutRecipe):
        from accord.recipes.rollouts import check_critic

        check_critic(recipe)
    if isinstance(recipe, ClassifyRecipe):
        from accord.recipes.classify import choose_labels, refuse_whole

        refuse_whole(recipe)
        choose_labels(recipe)
    if isinstance(recipe, CSFTRecipe):
        from accord.recipes.csft import check_values

        check_values(recipe)
    if isinstance(recipe, DPORecipe):
        from accord.recipes.dpo import check_margins

        check_margins(recipe)
    light = _open_rewards(command, recipe)
    _check_columns(recipe, light)
    if Path(location.base).exists():  # what is on the hub is fetched by a run, not by its rehearsal
        check_family(recipe)
        facts = rehearse(recipe)
    else:
        facts = _read_alone(recipe)
    for name, fact in facts.items():
        print(f"# {name}: {fact}")
    for line in foresight_lines(recipe):
        print(f"# memory: {line}")
    for warning in recipe.warnings():
        print(f"# warning: {warning}")
    print(f"# ready: accord {command} would {'go on in' if goes_on else 'write to'} {recipe.output}")
    return 0


def _check_columns(recipe: Recipe, light: Mapping[str, RewardSource]) -> None:
    """Read the prompts as the recipe would, and look for the columns that its rewards want."""
    from accord.data import read_records
    from accord.recipes.rewards import check_columns

    rewards = getattr(recipe, "reward", ())
    if rewards:
        records = read_records(recipe.data, want=recipe.rows_become).records
        check_columns(rewards, light, (record.columns for record in records))


def _read_alone(recipe: Recipe) -> dict[str, str]:
    """What the data's files hold, where there is no tokenizer here to measure the rows with."""
    from accord.data import read_records
    from accord.types import Example

    told = {"data": read_records(recipe.data, want=recipe.rows_become)}
    if recipe.data.eval_path:
        told["held out"] = read_records(recipe.data, recipe.data.eval_path, recipe.rows_become)
    ptx = getattr(recipe, "ptx", None)
    if ptx is not None:
        told["ptx"] = read_records(ptx.data, want=Example)
    return {
        name: f"{one.path}: {len(set(one.origins))} of {one.rows} rows ({one.format}), lengths not measured"
        for name, one in told.items()
    }


def _open_rewards(command: str, recipe: Recipe) -> dict[str, RewardSource]:
    from accord.recipes.rewards import open_light

    rewards = getattr(recipe, "reward", ())
    if not rewards and getattr(recipe, "needs_reward", False):
        raise ConfigError(
            f"{command} needs a `reward`: --reward rewards.py:FUNCTION, or --reward PATH of a reward model"
        )
    return open_light(rewards)
