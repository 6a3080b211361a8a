"""`accord online_dpo`: sample two answers, let the reward choose, learn the choice."""

from __future__ import annotations

from functools import partial

from accord.algorithms import OnlineDPO
from accord.config import OnlineDPORecipe
from accord.ops.statistics import SumOverRanks, one_rank
from accord.recipes.rollouts import build_rollouts
from accord.training.loop import Parts


def build(recipe: OnlineDPORecipe) -> Parts:
    """Everything that the loop needs; see `build_rollouts`."""
    return build_rollouts(recipe, partial(make_algorithm, recipe))


def make_algorithm(recipe: OnlineDPORecipe, sum_over_ranks: SumOverRanks = one_rank) -> OnlineDPO:
    """The recipe's algorithm section as the algorithm."""
    return OnlineDPO(recipe.algorithm, recipe.rollout.temperature, sum_over_ranks)
