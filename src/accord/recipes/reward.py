"""`accord reward`: a reward model from pairs of answers."""

from __future__ import annotations

from accord.algorithms import RewardModelling
from accord.config import RewardRecipe
from accord.data import encode_pairs
from accord.model.export import save_scorer
from accord.model.roles import Roles
from accord.recipes.examples import build_examples, longest_of_pair
from accord.training.loop import Parts


def build(recipe: RewardRecipe) -> Parts:
    """Everything that the loop needs; see `build_examples`."""
    return build_examples(
        recipe,
        RewardModelling(recipe.algorithm),
        add_role=Roles.add_scorer,
        encode=encode_pairs,
        length=longest_of_pair,
        save=save_scorer,
        next_steps=[("next", _next_step(recipe))],
    )


def _next_step(recipe: RewardRecipe) -> str:
    policy, reward = recipe.model.path, f"{recipe.output}/model"
    return f"accord ppo --model.path {policy} --reward {reward} --data.path PROMPTS.jsonl --output runs/ppo"
