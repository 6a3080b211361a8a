"""`accord ppo`: sample, score, and make good responses likelier."""

from __future__ import annotations

from functools import partial

from accord.algorithms import PPO
from accord.config import PPORecipe
from accord.ops.statistics import SumOverRanks, one_rank
from accord.recipes.rollouts import build_rollouts
from accord.training.loop import Parts


def build(recipe: PPORecipe) -> Parts:
    """Everything that the loop needs; see `build_rollouts`."""
    return build_rollouts(recipe, partial(make_algorithm, recipe))


def make_algorithm(recipe: PPORecipe, sum_over_ranks: SumOverRanks = one_rank) -> PPO:
    """The recipe's algorithm section as the algorithm."""
    on_trunk = recipe.critic.source == "policy_trunk"
    return PPO(recipe.algorithm, recipe.rollout.temperature, on_trunk, sum_over_ranks)
