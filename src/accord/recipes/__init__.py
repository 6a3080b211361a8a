"""Recipes: `build(recipe) -> Parts`, and the loop runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accord.config import Recipe
from accord.recipes import ppo, reward, sft
from accord.train.loop import Parts, run_loop
from accord.train.run import Run, RunDirectory

BUILDERS: dict[str, Callable[[Any], Parts]] = {"sft": sft.build, "reward": reward.build, "ppo": ppo.build}
"""Training command -> its builder."""


def train(recipe: Recipe, *, resume: bool = False, quiet: bool = False) -> Run:
    """Run a recipe to its end.

    Args:
        recipe: of any kind; `config.build` makes and checks one.
        resume: go on from the newest checkpoint in `recipe.output`.
        quiet: print nothing.

    Returns:
        The finished run: its folder, its metrics, its model.

    Raises:
        AccordError: anything that a person can mend. The output directory is checked before a model is loaded.
    """
    directory = RunDirectory(recipe, resume)
    try:
        parts = BUILDERS[recipe.algorithm.type](recipe)
        return run_loop(parts, directory, resume=resume, quiet=quiet)
    finally:
        directory.close()


__all__ = ["BUILDERS", "train"]
