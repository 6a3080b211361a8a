"""`accord simpo`: mean log-probabilities of pairs, and a margin, without a reference."""

from __future__ import annotations

from accord.algorithms import SimPO
from accord.config import SimPORecipe
from accord.data import encode_pairs
from accord.model.export import save_policy
from accord.model.roles import Roles
from accord.recipes.examples import build_examples, longest_of_pair, policy_steps
from accord.training.loop import Parts


def build(recipe: SimPORecipe) -> Parts:
    """Everything that the loop needs; see `build_examples`."""
    return build_examples(
        recipe,
        SimPO(recipe.algorithm),
        add_role=Roles.add_policy,
        encode=encode_pairs,
        length=longest_of_pair,
        save=save_policy,
        next_steps=policy_steps(recipe),
    )
