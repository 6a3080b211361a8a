"""`accord distill`: learn the teacher's distribution on one's own responses."""

from __future__ import annotations

from functools import partial

from accord.algorithms import Distill
from accord.config import DistillRecipe
from accord.data import Encoder, TokenSequence, encode_examples, stop_ids
from accord.errors import ModelError
from accord.ops.statistics import SumOverRanks, one_rank
from accord.recipes.build import check_context, read_rows
from accord.recipes.rollouts import build_rollouts
from accord.training.loop import Parts
from accord.training.sources import OnAndOffPolicy, Rollouts
from accord.training.stream import Stream
from accord.types import Example, Rollout


def build(recipe: DistillRecipe) -> Parts:
    """Everything that the loop needs; see `build_rollouts`.

    Raises:
        ModelError: the teacher's output layer has another size.
    """
    parts = build_rollouts(recipe, partial(make_algorithm, recipe))
    roles = parts.learner.roles
    student, teacher = (roles.roles[name].output for name in ("policy", "reference"))
    assert student is not None and teacher is not None
    if student.out_features != teacher.out_features:
        raise ModelError(
            f"teacher {recipe.teacher} gives {teacher.out_features} logits and the student {student.out_features}; their "
            "distributions can only be compared over one vocabulary"
        )
    if recipe.algorithm.on_policy < 1:
        _with_examples(recipe, parts)
    return parts


def make_algorithm(recipe: DistillRecipe, sum_over_ranks: SumOverRanks = one_rank) -> Distill:
    """The recipe's algorithm section as the algorithm."""
    return Distill(recipe.algorithm, recipe.rollout.temperature, sum_over_ranks)


def _with_examples(recipe: DistillRecipe, parts: Parts) -> None:
    """Let some iterations learn from the completions of the data.

    Raises:
        ConfigError: a row is longer than the model reads.
    """
    roles, ranks = parts.learner.roles, parts.learner.ranks
    encoder = Encoder(roles.tokenizer, stop_ids(roles.tokenizer, roles.model.generation_config))
    rows, _ = read_rows(recipe.data, Example, lambda loaded, config: encode_examples(loaded, encoder, config))
    check_context(roles, max(len(row) for row in rows), "data.max_tokens")
    stream = Stream([_as_rollout(row, encoder) for row in rows], recipe.train.batch_size, recipe.seed, ranks=ranks.size)
    assert isinstance(parts.source, Rollouts)
    parts.source = OnAndOffPolicy(parts.source, stream, recipe.algorithm.on_policy, recipe.seed, ranks)


def _as_rollout(row: TokenSequence, encoder: Encoder) -> Rollout:
    start = row.target_mask.index(True)
    prompt, response = row.input_ids[:start], row.input_ids[start:]
    return Rollout(
        prompt_ids=prompt,
        response_ids=response,
        sampler_logprobs=(0.0,) * len(response),
        finish_reason="stop" if response[-1] in encoder.stop_ids else "length",
        prompt_text=str(encoder.tokenizer.decode(list(prompt))),
        response_text=str(encoder.tokenizer.decode(list(response), skip_special_tokens=True)),
        version=-1,
        learnt_ids=row.target_mask[start:],
    )
