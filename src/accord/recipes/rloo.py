"""`accord rloo`: several responses to each prompt; each is judged by the others' mean."""

from __future__ import annotations

from functools import partial

from accord.algorithms import RLOO
from accord.config import RLOORecipe
from accord.ops.statistics import SumOverRanks, one_rank
from accord.recipes.rollouts import build_rollouts
from accord.training.loop import Parts


def build(recipe: RLOORecipe) -> Parts:
    """Everything that the loop needs; see `build_rollouts`."""
    return build_rollouts(recipe, partial(make_algorithm, recipe))


def make_algorithm(recipe: RLOORecipe, sum_over_ranks: SumOverRanks = one_rank) -> RLOO:
    """The recipe's algorithm section as the algorithm."""
    return RLOO(recipe.algorithm, recipe.rollout.temperature, sum_over_ranks)
