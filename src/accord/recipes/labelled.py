"""What `accord kto` and `accord bco` share: policy and reference on rows with a thumb up or down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from accord.algorithms import Algorithm
from accord.config import BCORecipe, KTORecipe
from accord.data import EncodedLabelled, encode_labelled
from accord.model.export import save_policy
from accord.model.roles import Roles
from accord.ops.statistics import SumOverRanks
from accord.recipes.build import check_tokenizer, model_folder
from accord.recipes.examples import build_examples
from accord.training.loop import Parts


def build_labelled(
    recipe: KTORecipe | BCORecipe,
    make_algorithm: Callable[[SumOverRanks], Algorithm],
    *,
    arrange: Callable[[Sequence[EncodedLabelled]], list[EncodedLabelled]] = list,
    least: int = 1,
    look: Callable[[Sequence[EncodedLabelled]], Sequence[str]] = lambda rows: (),
) -> Parts:
    """Everything that the loop needs; see `build_examples`."""

    def add_roles(roles: Roles) -> None:
        if recipe.reference.path is not None:
            check_tokenizer(recipe.reference.path, roles)
        roles.add_policy()
        roles.add_reference(recipe.reference)

    return build_examples(
        recipe,
        make_algorithm,
        add_role=add_roles,
        encode=encode_labelled,
        length=lambda row: len(row.sequence),
        save=save_policy,
        next_steps=[("try it", f'accord generate {model_folder(recipe)} --prompt "..."')],
        arrange=arrange,
        least=least,
        look=look,
    )


def one_sided(rows: Sequence[EncodedLabelled]) -> list[str]:
    """A note if all labels are the same."""
    up = sum(row.label for row in rows)
    if 0 < up < len(rows):
        return []
    label = "up" if up else "down"
    return [f"all {len(rows)} rows have a thumb {label}, so nothing tells good from bad"]
