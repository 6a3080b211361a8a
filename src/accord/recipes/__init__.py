"""Recipes: `build(recipe) -> Parts`, and the loop runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accord.config import RECIPES, Recipe, load
from accord.config import build as build_recipe
from accord.errors import ConfigError
from accord.recipes import (
    cpo,
    csft,
    distill,
    dpo,
    grpo,
    online_dpo,
    orpo,
    ppo,
    reinforce,
    rejection,
    remax,
    reward,
    rloo,
    sft,
    simpo,
)
from accord.report import write_report
from accord.training.loop import Parts, run_loop
from accord.training.run import Run, RunDirectory

BUILDERS: dict[str, Callable[[Any], Parts]] = {
    "sft": sft.build,
    "reward": reward.build,
    "ppo": ppo.build,
    "rloo": rloo.build,
    "grpo": grpo.build,
    "reinforce": reinforce.build,
    "online_dpo": online_dpo.build,
    "csft": csft.build,
    "distill": distill.build,
    "rejection": rejection.build,
    "remax": remax.build,
    "dpo": dpo.build,
    "orpo": orpo.build,
    "simpo": simpo.build,
    "cpo": cpo.build,
}
"""Training command -> its builder."""


def train(recipe: Recipe | Mapping[str, Any] | str | Path, *, resume: bool = False, quiet: bool = False) -> Run:
    """Run a recipe to its end.

    Args:
        recipe: a recipe, the same as nested dicts, or the path of a YAML file; the latter two name their kind in
            `algorithm.type`.
        resume: go on from the newest checkpoint in `recipe.output`.
        quiet: print nothing.

    Returns:
        The finished run: its folder, its metrics, its model.

    Raises:
        AccordError: anything that a person can mend. The output directory is checked before a model is loaded.
    """
    recipe = recipe if isinstance(recipe, Recipe) else _read(recipe)
    directory = RunDirectory(recipe, resume)
    try:
        parts = BUILDERS[recipe.algorithm.type](recipe)
        return run_loop(parts, directory, write_report, resume=resume, quiet=quiet)
    finally:
        directory.close()


def _read(config: Mapping[str, Any] | str | Path) -> Recipe:
    layer = load(config) if isinstance(config, (str, Path)) else dict(config)
    algorithm = layer.get("algorithm")
    kind = algorithm.get("type") if isinstance(algorithm, Mapping) else None
    if kind not in RECIPES:
        raise ConfigError(f"algorithm.type says which recipe this is: one of {', '.join(RECIPES)} (given: {kind!r})")
    return build_recipe(RECIPES[kind], layer)


__all__ = ["BUILDERS", "train"]
