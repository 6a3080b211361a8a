"""`accord dpo`: preferences from pairs, relative to a reference whose log-probabilities are computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from accord.algorithms import DPO
from accord.config import DPORecipe
from accord.data import EncodedPair, encode_pairs, read_records
from accord.errors import ConfigError
from accord.model.export import save_policy
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.model.sharing import freeze_lower
from accord.recipes.build import Split, check_tokenizer, held_out_rows
from accord.recipes.examples import build_examples, longest_of_pair, policy_steps
from accord.recipes.reference import reference_logprobs, reference_role
from accord.training.console import Console
from accord.training.loop import Parts
from accord.training.parallel import Ranks


def build(recipe: DPORecipe) -> Parts:
    """Everything that the loop needs; see `build_examples`."""
    check_margins(recipe)
    algorithm = DPO(recipe.algorithm)
    return build_examples(
        recipe,
        algorithm,
        add_role=partial(_add_policy, recipe),
        encode=encode_pairs,
        length=longest_of_pair,
        save=save_policy,
        next_steps=policy_steps(recipe),
        begin=partial(_begin, recipe, algorithm),
    )


def check_margins(recipe: DPORecipe) -> None:
    """Look for margins in the rows to learn from, before any weight is loaded.

    Raises:
        ConfigError: margins are to be used, and no row has one.
        DataError: the rows cannot be read.
    """
    if not recipe.algorithm.margin_coef:
        return
    loaded = read_records(recipe.data, want=recipe.rows_become)
    kept_back = held_out_rows(recipe, loaded.origins)
    rows = zip(loaded.records, loaded.origins, strict=True)
    _demand_margins(getattr(record, "margin", None) for record, origin in rows if origin not in kept_back)


def _demand_margins(margins: Iterable[float | None]) -> None:
    if all(margin is None for margin in margins):
        raise ConfigError(
            "algorithm.margin_coef weighs the column `margin` of the data, and no row has one: set margin_coef to 0, or "
            "name the column with data.columns"
        )


def _add_policy(recipe: DPORecipe, roles: Roles) -> None:
    if recipe.reference is not None and recipe.reference.path is not None:
        check_tokenizer(recipe.reference.path, roles)
    roles.add_policy()
    if recipe.reference is not None and recipe.reference.k is not None:
        freeze_lower(roles.model, recipe.reference.k)  # now, so that the learner and the header know what learns


def _begin(
    recipe: DPORecipe, algorithm: DPO, scorer: Scorer, split: Split[EncodedPair], ranks: Ranks, console: Console
) -> Mapping[str, str]:
    """Ask the reference about every answer, once; after that nothing holds it in memory.

    Raises:
        ConfigError: margins are to be used, and no row has one.
    """
    algorithm.join_ranks = ranks.join
    if recipe.algorithm.margin_coef:  # once more, of the rows that fit
        _demand_margins(pair.margin for pair in split.train)
    if recipe.reference is None:
        return {"reference": "none"}
    pairs = [*split.train, *split.held_out]
    sequences = list(dict.fromkeys(sequence for pair in pairs for sequence in (pair.chosen, pair.rejected)))
    with reference_role(scorer.roles, recipe.reference):
        known = reference_logprobs(scorer, sequences, ranks, console)
    algorithm.reference = dict(zip(sequences, known.logprobs_N.tolist(), strict=True))
    source = recipe.reference.path or "the policy as it starts"
    return {"reference": f"{source}; {known.origin}"}
