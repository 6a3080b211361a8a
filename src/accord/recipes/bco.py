"""`accord bco`: binary classifier optimisation on rows with a thumb up or down."""

from __future__ import annotations

from functools import partial

from accord.algorithms import BCO
from accord.config import BCORecipe
from accord.recipes.labelled import build_labelled, one_sided
from accord.training.loop import Parts


def build(recipe: BCORecipe) -> Parts:
    """Everything that the loop needs; see `build_examples`."""
    return build_labelled(recipe, partial(BCO, recipe.algorithm), look=one_sided)
