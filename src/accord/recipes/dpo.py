"""`accord dpo`: preferences from pairs, relative to a reference whose log-probabilities are computed once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from accord.algorithms import DPO
from accord.config import DPORecipe
from accord.data import EncodedPair, encode_pairs
from accord.errors import ConfigError
from accord.model.export import save_policy
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.model.sharing import freeze_lower
from accord.recipes.build import Split, check_tokenizer
from accord.recipes.examples import build_examples, longest_of_pair, policy_steps
from accord.recipes.reference import reference_logprobs, reference_role
from accord.training.console import Console
from accord.training.loop import Parts
from accord.training.parallel import Ranks


def build(recipe: DPORecipe) -> Parts:
    """Everything that the loop needs; see `build_examples`."""
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
    if recipe.algorithm.margin_coef and not any(pair.margin is not None for pair in split.train):
        raise ConfigError(
            "algorithm.margin_coef weighs the column `margin` of the data, and no row has one: set margin_coef to 0, or "
            "name the column with data.columns"
        )
    if recipe.reference is None:
        return {"reference": "none"}
    pairs = [*split.train, *split.held_out]
    sequences = list(dict.fromkeys(sequence for pair in pairs for sequence in (pair.chosen, pair.rejected)))
    with reference_role(scorer.roles, recipe.reference):
        known = reference_logprobs(scorer, sequences, ranks, console)
    algorithm.reference = dict(zip(sequences, known.logprobs_N.tolist(), strict=True))
    source = recipe.reference.path or "the policy as it starts"
    return {"reference": f"{source}; {known.origin}"}
