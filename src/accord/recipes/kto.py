"""`accord kto`: Kahneman-Tversky optimisation on rows with a thumb up or down."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from accord.algorithms import KTO
from accord.config import KTOConfig, KTORecipe
from accord.data import EncodedLabelled, with_mismatched
from accord.recipes.build import longest_allowed
from accord.recipes.labelled import build_labelled, one_sided
from accord.training.loop import Parts

BALANCE = (1.0, 4 / 3)
"""Bounds of (weight x number of thumbs up) / (the same of thumbs down): arXiv:2402.01306, section 4.2."""


def build(recipe: KTORecipe) -> Parts:
    """Everything that the loop needs; see `build_examples`."""
    config = recipe.algorithm
    make, look = partial(KTO, config), partial(balance, config)
    if not config.kl:
        return build_labelled(recipe, make, look=look)
    arrange = partial(with_mismatched, limit=longest_allowed(recipe))
    return build_labelled(recipe, make, look=look, arrange=arrange, least=2)


def balance(config: KTOConfig, rows: Sequence[EncodedLabelled]) -> list[str]:
    """A note if thumbs up and down weigh otherwise than the paper advises, with the weight that would mend it."""
    up = sum(row.label for row in rows)
    down = len(rows) - up
    if not up or not down:
        return one_sided(rows)
    liked, disliked = config.desirable_weight * up, config.undesirable_weight * down
    low, high = BALANCE
    if low - 1e-9 <= liked / disliked <= high + 1e-9:
        return []
    if liked < disliked:
        cure = (
            f"algorithm.desirable_weight between {_rounded(disliked * low / up)} and {_rounded(disliked * high / up)}"
        )
    else:
        cure = (
            f"algorithm.undesirable_weight between {_rounded(liked / high / down)} and {_rounded(liked / low / down)}"
        )
    return [
        f"{up} thumbs up and {down} down weigh {_rounded(liked / disliked)} : 1 (count x weight), and the paper advises "
        f"1 to 4/3: set {cure}"
    ]


def _rounded(number: float) -> str:
    return f"{number:.3g}"
