"""`accord sft`: packed causal language modelling on text, prompt and completion, or messages."""

from __future__ import annotations

from accord.algorithms import SFT
from accord.config import SFTRecipe
from accord.data import encode_examples
from accord.model.export import save_policy
from accord.model.roles import Roles
from accord.recipes.build import model_folder
from accord.recipes.examples import build_examples, policy_steps
from accord.recipes.going_on import method_option
from accord.training.loop import Parts


def build(recipe: SFTRecipe) -> Parts:
    """Everything that the loop needs; see `build_examples`."""
    return build_examples(
        recipe,
        SFT(),
        add_role=Roles.add_policy,
        encode=encode_examples,
        length=len,
        save=save_policy,
        next_steps=_next_steps(recipe),
    )


def _next_steps(recipe: SFTRecipe) -> list[tuple[str, str]]:
    start = f"{model_folder(recipe)}{method_option(recipe.adapter)}"
    reward = f"accord reward --model.path {start} --data.path PAIRS.jsonl --output runs/reward"
    return [*policy_steps(recipe), ("next", reward)]
