"""How many tokens meet a model at once, from the recipe alone: the longest that it allows."""

from __future__ import annotations

from dataclasses import dataclass

from accord.config import Recipe, RolloutRecipe
from accord.config.rollout import MOST
from accord.packing import worth_sharing

PAIRED = ("reward", "dpo", "orpo", "simpo", "cpo", "online_dpo")
"""Recipes whose sequences come in twos that stay together."""
ENTROPIES = ("ppo", "rloo", "grpo", "reinforce", "remax")
"""Recipes whose update computes entropies, too."""
DROPOUT = ("sft", "csft", "reward", "dpo", "orpo", "simpo", "cpo", "classify", "rejection")
"""Recipes that learn with dropout."""


@dataclass(frozen=True)
class Micro:
    """Tokens that go through a model together."""

    tokens: int
    """That are computed: a prefix in common counts once."""
    targets: int
    """Those whose log-probabilities are wanted."""
    joined: int = 0
    """Keys of sequences that attend to a prefix which another computed, their own behind it."""


@dataclass(frozen=True)
class Workload:
    """Sizes of an update, and of a rollout if there is one."""

    sequences: int
    """Of one optimiser step, on one rank."""
    longest: int
    """Tokens of the longest sequence."""
    update: Micro
    """The largest micro-batch of a step."""
    micro_batches: int
    """In a step, at least."""
    scored: Micro
    """The most that a frozen pass takes at once."""
    rows: int = 0
    """Sequences in flight while sampling."""
    prompt: int = 0
    """Tokens of the longest prompt."""
    columns: int = 0
    """Tokens that the cache holds of each."""
    text: Workload | None = None
    """Of what the policy learns beside the rewards in each step (`ptx`)."""


def workload(recipe: Recipe, ranks: int = 1, longest: int | None = None, shares: bool = False) -> Workload:
    """The sizes of a recipe.

    Args:
        recipe: of any kind.
        ranks: processes that share each batch.
        longest: tokens of the longest row of the data (or prompt, for rollouts), where that is known; else what
            `data.max_tokens` allows.
        shares: whether the models compute a prompt once for all its responses.
    """
    unit = 2 if recipe.algorithm.type in PAIRED else 1
    train = recipe.train
    if not isinstance(recipe, RolloutRecipe):
        length = min(longest or recipe.data.max_tokens, recipe.data.max_tokens)
        sequences = max(train.batch_size // ranks, 1) * unit
        micro, count = micro_batches(sequences, 0, length, unit, train.micro_batch_tokens)
        return Workload(sequences, length, micro, count, micro)
    rollout = recipe.rollout
    prompt = min(longest or recipe.prompt_limit, recipe.prompt_limit)
    new, samples, limit = rollout.max_new_tokens, rollout.samples, train.micro_batch_tokens
    responses = max(train.batch_size // ranks, 1)
    kept, kept_of_one = responses, samples
    if recipe.algorithm.type == "online_dpo":
        kept, kept_of_one = responses // samples * unit, unit
    elif recipe.algorithm.type == "rejection":
        kept, kept_of_one = responses // samples, 1
    sequences = max(-(-kept // recipe.algorithm.minibatches), unit)
    shares = shares and worth_sharing(prompt, prompt + new) > 0
    together = shares and (unit > 1 or recipe.algorithm.minibatches == 1)  # minibatches cut groups, and not pairs
    update, count = micro_batches(sequences, prompt, new, unit, limit, kept_of_one if together else 1)
    scored, _ = micro_batches(responses, prompt, new, 1, limit, samples if shares else 1)
    text = None
    if recipe.ptx is not None:
        rows, most = max(recipe.ptx.batch_size // ranks, 1), recipe.ptx.data.max_tokens
        micro, parts = micro_batches(rows, 0, most, 1, limit)
        text = Workload(rows, most, micro, parts, micro)
    return Workload(
        sequences,
        prompt + new,
        update,
        count,
        scored,
        _rows(rollout.max_sequences, responses),
        prompt,
        prompt + new,
        text,
    )


def _rows(wanted: object, responses: int) -> int:
    return min(wanted if isinstance(wanted, int) else MOST, responses)


def micro_batches(sequences: int, prompt: int, new: int, unit: int, limit: int, group: int = 1) -> tuple[Micro, int]:
    """The largest micro-batch, and how many there are.

    Sequences (or pairs) are put into bins and never cut, so of sequences that are all of the longest length a bin takes as many
    as fit. Groups behind one prompt go together; one that is larger than a bin is cut, and each part computes the prompt again.

    Args:
        sequences: in a step.
        prompt: tokens of a sequence that are not learnt.
        new: those that are.
        unit: so many sequences stay together.
        limit: tokens of a micro-batch.
        group: so many sequences compute one prompt together; with 1 each computes its own.
    """
    group = min(group, sequences)
    if group > 1 and prompt + group * new > limit:
        group = max((limit - prompt) // new // unit, 1) * unit
    bound = group if group > 1 else unit  # sequences that go into one bin together
    tokens = prompt + bound * new if group > 1 else bound * (prompt + new)
    bins = -(-sequences // bound)
    held = min(max(limit // tokens, 1), bins)
    joined = held * (group - 1) * (prompt + new)
    return Micro(held * tokens, held * bound * new, joined), -(-bins // held)
