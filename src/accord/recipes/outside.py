"""Responses that came from elsewhere (a person, another model, a log) as rollouts of the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from accord.algorithms.rollouts import rollout_batch
from accord.data import Encoder
from accord.errors import DataError
from accord.model.scorer import Scorer
from accord.recipes.build import check_context
from accord.types import Message, Rollout, Text

Tokens: TypeAlias = Sequence[int]
"""Token ids: a list, a tuple, or a tensor of one dimension."""


def outside_rollouts(
    queries: Sequence[Text | Tokens], responses: Sequence[Text | Tokens], encoder: Encoder, scorer: Scorer, *, end: bool
) -> list[Rollout]:
    """A rollout for each query and response. Who wrote a response had no log-probabilities, so the policy's own stand for the
    sampler's: the response counts as sampled now, as in classic TRL.

    Args:
        queries: texts, conversations, or token ids.
        responses: texts or token ids. Two texts are tokenised as one, as in `accord sft`.
        encoder: of the policy's tokenizer.
        scorer: for the policy's log-probabilities.
        end: a response that is a text gets the token that ends a turn; token ids are taken as they are.

    Raises:
        DataError: there are none, not equally many, or one that cannot be learnt from.
        ConfigError: one is longer than the model reads.
    """
    if len(queries) != len(responses):
        raise DataError(
            f"{len(queries)} queries and {len(responses)} responses were given; each response answers one query"
        )
    if not queries:
        raise DataError("step needs at least one response, and got none")
    pairs = list(zip(queries, responses, strict=True))
    rollouts = [_rollout(index, query, response, encoder, end) for index, (query, response) in enumerate(pairs)]
    longest = max(len(rollout.prompt_ids) + len(rollout.response_ids) for rollout in rollouts)
    check_context(scorer.roles, longest, "the length of queries and responses")
    logprobs_K = scorer.score(batch := rollout_batch(rollouts), ["old_logprobs_T"])["old_logprobs_T"][
        batch.target_mask_T
    ]
    parts = logprobs_K.split([len(rollout.response_ids) for rollout in rollouts])
    return [
        replace(rollout, sampler_logprobs=tuple(part.tolist()), score=None)
        for rollout, part in zip(rollouts, parts, strict=True)
    ]


def _rollout(index: int, query: Any, response: Any, encoder: Encoder, end: bool) -> Rollout:
    prompt_ids, response_ids = _encode(index, query, response, encoder, end)
    _check(f"query {index}", prompt_ids, encoder, "a response needs something to answer")
    _check(f"response {index}", response_ids, encoder, "it has at least one token, its end")
    text_ids = response_ids[:-1] if response_ids[-1] in encoder.stop_ids else response_ids
    decode = encoder.tokenizer.decode
    return Rollout(
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        sampler_logprobs=(0.0,) * len(response_ids),
        finish_reason="stop" if response_ids[-1] in encoder.stop_ids else "length",
        prompt_text=str(decode(list(prompt_ids))) if _is_tokens(query) else encoder.prompt_text(_text(query)),
        response_text=response if isinstance(response, str) else str(decode(list(text_ids), skip_special_tokens=True)),
        group=index,
        score=0.0,
    )


def _encode(
    index: int, query: Any, response: Any, encoder: Encoder, end: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of the query and of the response."""
    if _is_tokens(response):
        return _ids(query) if _is_tokens(query) else encoder.encode_prompt(_text(query)), _ids(response)
    if not isinstance(response, str):
        raise DataError(f"response {index} is a {type(response).__name__}; give a text or token ids")
    if _is_tokens(query):
        ids = encoder.tokenizer(response, add_special_tokens=False)["input_ids"]
        return _ids(query), (*ids, encoder.eos_id) if end else tuple(ids)
    prompt = _text(query)
    answer = response if isinstance(prompt, str) else (Message("assistant", response),)
    sequence = encoder.encode_example(prompt, answer)
    cut = sequence.target_mask.index(True) if True in sequence.target_mask else len(sequence)
    ids = sequence.input_ids[cut:]
    return sequence.input_ids[:cut], ids if end or not ids or ids[-1] not in encoder.stop_ids else ids[:-1]


def _check(what: str, ids: tuple[int, ...], encoder: Encoder, why: str) -> None:
    if not ids:
        raise DataError(f"{what} is empty; {why}")
    size = len(encoder.tokenizer)
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < size:
            raise DataError(f"{what} holds {token!r}, which is no token id: the tokenizer's are 0 to {size - 1}")


def _is_tokens(value: Any) -> bool:
    """Token ids, and not a text or a conversation."""
    if hasattr(value, "tolist"):
        return True
    return isinstance(value, Sequence) and not isinstance(value, str) and not any(isinstance(x, Message) for x in value)


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(value.tolist() if hasattr(value, "tolist") else value)


def _text(query: Any) -> Text:
    return query if isinstance(query, str) else tuple(query)
