"""`accord reinforce`: REINFORCE++, PPO's loss with whitened returns and no critic."""

from __future__ import annotations

from functools import partial

from accord.algorithms import Reinforce
from accord.config import ReinforceRecipe
from accord.ops.statistics import SumOverRanks, one_rank
from accord.recipes.rollouts import build_rollouts
from accord.training.loop import Parts


def build(recipe: ReinforceRecipe) -> Parts:
    """Everything that the loop needs; see `build_rollouts`."""
    return build_rollouts(recipe, partial(make_algorithm, recipe))


def make_algorithm(recipe: ReinforceRecipe, sum_over_ranks: SumOverRanks = one_rank) -> Reinforce:
    """The recipe's algorithm section as the algorithm."""
    return Reinforce(recipe.algorithm, recipe.rollout.temperature, sum_over_ranks)
