"""Recipes: `build(recipe) -> Parts`, and the loop runs them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accord.config import RECIPES, Recipe, load
from accord.config import build as build_recipe
from accord.errors import AccordError, AccordWarning, ConfigError
from accord.model.publish import check_folder, check_push, push
from accord.recipes import (
    bco,
    classify,
    cpo,
    csft,
    distill,
    dpo,
    grpo,
    kto,
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
from accord.recipes.foresight import with_forecast
from accord.report import write_report
from accord.training.loop import Parts, run_loop
from accord.training.run import Run, RunDirectory

BUILDERS: dict[str, Callable[[Any], Parts]] = {
    "sft": sft.build,
    "reward": reward.build,
    "classify": classify.build,
    "ppo": ppo.build,
    "rloo": rloo.build,
    "grpo": grpo.build,
    "reinforce": reinforce.build,
    "dpo": dpo.build,
    "orpo": orpo.build,
    "simpo": simpo.build,
    "cpo": cpo.build,
    "kto": kto.build,
    "bco": bco.build,
    "online_dpo": online_dpo.build,
    "csft": csft.build,
    "distill": distill.build,
    "rejection": rejection.build,
    "remax": remax.build,
}
"""Training command -> its builder."""


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    started: float | None = None,
) -> Run:
    """Run a recipe to its end.

    Args:
        recipe: a recipe, the same as nested dicts, or the path of a YAML file; the latter two name their kind in
            `algorithm.type`.
        resume: go on from the newest checkpoint in `recipe.output`.
        quiet: print nothing.
        started: `time.perf_counter()` when the command was given, if that was before this call; for `time/start`.

    Returns:
        The finished run: its folder, its metrics, its model.

    Raises:
        AccordError: anything that a person can mend. The output directory is checked before a model is loaded.
    """
    started = time.perf_counter() if started is None else started
    recipe = recipe if isinstance(recipe, Recipe) else _read(recipe)
    directory = RunDirectory(recipe, resume)
    try:
        if recipe.push is not None:
            check_push(recipe.push)
        parts = with_forecast(BUILDERS[recipe.algorithm.type](recipe))
        run = run_loop(parts, directory, write_report, resume=resume, quiet=quiet, started=started)
        if recipe.push is not None and parts.learner.ranks.first:
            _push(run, recipe.push, quiet)
        return run
    finally:
        directory.close()


def _push(run: Run, repo: str, quiet: bool) -> None:
    """Put the model on the hub; a failure is told, and costs nothing of the run."""
    try:
        notes = check_folder(run.model)
        address = push(run.model, repo, private=True)
    except AccordError as error:
        warnings.warn(str(error), AccordWarning, stacklevel=3)
        return
    if not quiet:
        print("\n".join([f"pushed: {address}", *(f"note: {note}" for note in notes)]))


def _read(config: Mapping[str, Any] | str | Path) -> Recipe:
    layer = load(config) if isinstance(config, (str, Path)) else dict(config)
    algorithm = layer.get("algorithm")
    kind = algorithm.get("type") if isinstance(algorithm, Mapping) else None
    if kind not in RECIPES:
        raise ConfigError(f"algorithm.type says which recipe this is: one of {', '.join(RECIPES)} (given: {kind!r})")
    return build_recipe(RECIPES[kind], layer)


__all__ = ["BUILDERS", "train"]
