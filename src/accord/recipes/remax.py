"""`accord remax`: REINFORCE against the greedy response."""

from __future__ import annotations

from functools import partial

from accord.algorithms import ReMax
from accord.config import ReMaxRecipe
from accord.ops.statistics import SumOverRanks, one_rank
from accord.recipes.rollouts import build_rollouts
from accord.training.loop import Parts


def build(recipe: ReMaxRecipe) -> Parts:
    """Everything that the loop needs; see `build_rollouts`."""
    return build_rollouts(recipe, partial(make_algorithm, recipe), greedy=True)


def make_algorithm(recipe: ReMaxRecipe, sum_over_ranks: SumOverRanks = one_rank) -> ReMax:
    """The recipe's algorithm section as the algorithm."""
    return ReMax(recipe.algorithm, recipe.rollout.temperature, sum_over_ranks)
