"""`accord grpo`: several responses to each prompt; each is judged relative to its group."""

from __future__ import annotations

from functools import partial

from accord.algorithms import GRPO
from accord.config import GRPORecipe
from accord.ops.statistics import SumOverRanks, one_rank
from accord.recipes.rollouts import build_rollouts
from accord.training.loop import Parts


def build(recipe: GRPORecipe) -> Parts:
    """Everything that the loop needs; see `build_rollouts`."""
    return build_rollouts(recipe, partial(make_algorithm, recipe))


def make_algorithm(recipe: GRPORecipe, sum_over_ranks: SumOverRanks = one_rank) -> GRPO:
    """The recipe's algorithm section as the algorithm."""
    weights = {term.label: term.weight for term in recipe.reward}
    return GRPO(recipe.algorithm, recipe.rollout.temperature, recipe.rollout.max_new_tokens, sum_over_ranks, weights)
