"""`accord rejection`: sample, keep the best, learn them as examples."""

from __future__ import annotations

from functools import partial

from accord.algorithms import Rejection
from accord.config import RejectionRecipe
from accord.ops.statistics import SumOverRanks, one_rank
from accord.recipes.rollouts import build_rollouts
from accord.training.loop import Parts


def build(recipe: RejectionRecipe) -> Parts:
    """Everything that the loop needs; see `build_rollouts`."""
    return build_rollouts(recipe, partial(make_algorithm, recipe))


def make_algorithm(recipe: RejectionRecipe, sum_over_ranks: SumOverRanks = one_rank) -> Rejection:
    """The recipe's algorithm section as the algorithm."""
    return Rejection(recipe.algorithm, recipe.rollout.temperature, sum_over_ranks)
