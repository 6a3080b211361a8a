"""How many tokens meet a model at once, from the recipe alone: the longest that it allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from accord.config import Recipe, RolloutRecipe
from accord.config.rollout import MOST

PAIRED = ("reward", "dpo", "orpo", "simpo", "cpo", "online_dpo")
"""Recipes whose sequences come in twos that stay together."""
ENTROPIES = ("ppo", "rloo", "grpo", "reinforce", "remax")
"""Recipes whose update computes entropies, too."""
DROPOUT = ("sft", "csft", "reward", "dpo", "orpo", "simpo", "cpo", "classify", "rejection")
"""Recipes that learn with dropout."""


@dataclass(frozen=True)
class Workload:
    """Sizes of an update, and of a rollout if there is one."""

    sequences: int
    """Of one optimiser step, on one rank."""
    longest: int
    """Tokens of the longest sequence."""
    tokens: int
    """Most tokens in a micro-batch."""
    targets: int
    """Most of them that are learnt."""
    micro_batches: int
    """In a step, at least."""
    scored: int
    """Most tokens that a frozen pass takes at once."""
    scored_targets: int
    """Most of them whose log-probabilities are wanted."""
    rows: int = 0
    """Sequences in flight while sampling."""
    prompt: int = 0
    """Tokens of the longest prompt."""
    columns: int = 0
    """Tokens that the cache holds of each."""


def workload(recipe: Recipe, ranks: int = 1, longest: int | None = None) -> Workload:
    """The sizes of a recipe.

    Args:
        recipe: of any kind.
        ranks: processes that share each batch.
        longest: tokens of the longest row of the data (or prompt, for rollouts), where that is known; else what
            `data.max_tokens` allows.
    """
    unit = 2 if recipe.algorithm.type in PAIRED else 1
    train = recipe.train
    if not isinstance(recipe, RolloutRecipe):
        length = min(longest or recipe.data.max_tokens, recipe.data.max_tokens)
        sequences = max(train.batch_size // ranks, 1) * unit
        tokens, count = micro_batches(sequences, length, unit, train.micro_batch_tokens)
        return Workload(sequences, length, tokens, tokens, count, tokens, tokens)
    rollout = recipe.rollout
    prompt = min(longest or recipe.prompt_limit, recipe.prompt_limit)
    length = prompt + rollout.max_new_tokens
    responses = max(train.batch_size // ranks, 1)
    kept = responses // rollout.samples * unit if recipe.algorithm.type in ("online_dpo",) else responses
    kept = responses // rollout.samples if recipe.algorithm.type == "rejection" else kept
    sequences = max(-(-kept // recipe.algorithm.minibatches), unit)
    tokens, count = micro_batches(sequences, length, unit, train.micro_batch_tokens)
    scored, _ = micro_batches(responses, length, 1, train.micro_batch_tokens)
    share = rollout.max_new_tokens / length
    return Workload(
        sequences,
        length,
        tokens,
        math.ceil(tokens * share),
        count,
        scored,
        math.ceil(scored * share),
        _rows(rollout.max_sequences, responses),
        prompt,
        length,
    )


def _rows(wanted: object, responses: int) -> int:
    return min(wanted if isinstance(wanted, int) else MOST, responses)


def micro_batches(sequences: int, longest: int, unit: int, limit: int) -> tuple[int, int]:
    """Most tokens of a micro-batch, and how many there are: sequences (or pairs) are put into bins and never cut, so of
    sequences that are all of the longest length a bin takes as many as fit."""
    total, least = sequences * longest, unit * longest
    if total <= limit:
        return total, 1
    in_one = max(limit // least, 1) * least
    return min(in_one, total), -(-total // in_one)
