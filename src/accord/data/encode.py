"""Loaded records to token ids within the limits of the recipe; what does not fit is rejected with its origin."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from accord.config.data import DataConfig
from accord.data.chat import Encoder, TokenSequence, all_targets
from accord.data.formats import Loaded
from accord.data.sources import Rejection, RowError, count_reasons, stop_on
from accord.errors import DataError
from accord.types import Columns, Example, LabelledResponse, PreferencePair, Prompt, Record, StepwiseExample, Text

logger = logging.getLogger(__name__)

_CURE = "If they are too long, raise the limit or cut them with data.too_long: truncate"

T = TypeVar("T")
R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Both answers to one prompt, each with the prompt."""

    chosen: TokenSequence
    rejected: TokenSequence
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class EncodedLabelled:
    """An answer with its prompt, and its verdict."""

    sequence: TokenSequence
    label: bool
    mismatched: TokenSequence | None = None
    """The same prompt with another row's answer, see `with_mismatched`."""


@dataclass(frozen=True, slots=True)
class EncodedSteps:
    """An answer with its prompt, and the verdict on each step."""

    sequence: TokenSequence
    """The targets are the last tokens of the steps."""
    labels: tuple[float, ...]
    """One for each target, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt to sample after."""

    ids: tuple[int, ...]
    text: str
    """The prompt as the model reads it, chat template applied; whole, even if the ids were truncated."""
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Encoded(Generic[T]):
    """Items in the order of the records; every record is in `items` or in `rejections`."""

    items: list[T]
    origins: list[str]
    rejections: list[Rejection] = field(default_factory=list)


def encode_examples(loaded: Loaded, encoder: Encoder, config: DataConfig) -> Encoded[TokenSequence]:
    """Sequences to imitate, at most `config.max_tokens` long, learning what `config.train_on` says.

    Raises:
        DataError: rows do not fit and `config.on_bad_row` is `stop`, or no row is left.
    """

    def one(example: Example) -> TokenSequence:
        sequence = fitted(encoder, example.prompt, example.completion, config)
        return all_targets(sequence) if config.train_on == "all" else sequence

    return encode_records(loaded, Example, one, config.on_bad_row)


def encode_pairs(loaded: Loaded, encoder: Encoder, config: DataConfig) -> Encoded[EncodedPair]:
    """Pairs of sequences, each at most `config.max_tokens` long; targets are the answers' tokens.

    Raises:
        DataError: rows do not fit (one answer is enough) and `config.on_bad_row` is `stop`, or no row is left.
    """

    def one(pair: PreferencePair) -> EncodedPair:
        chosen = fitted(encoder, pair.prompt, pair.chosen, config, "`chosen` ")
        rejected = fitted(encoder, pair.prompt, pair.rejected, config, "`rejected` ")
        if chosen.input_ids == rejected.input_ids:
            raise RowError("`chosen` and `rejected` are the same tokens, after truncation if there was any")
        return EncodedPair(chosen, rejected, pair.margin)

    return encode_records(loaded, PreferencePair, one, config.on_bad_row)


def encode_labelled(loaded: Loaded, encoder: Encoder, config: DataConfig) -> Encoded[EncodedLabelled]:
    """Sequences with a verdict, at most `config.max_tokens` long; targets are the answer's tokens.

    Raises:
        DataError: rows do not fit and `config.on_bad_row` is `stop`, or no row is left.
    """

    def one(row: LabelledResponse) -> EncodedLabelled:
        return EncodedLabelled(fitted(encoder, row.prompt, row.completion, config), row.label)

    return encode_records(loaded, LabelledResponse, one, config.on_bad_row)


def encode_steps(loaded: Loaded, encoder: Encoder, config: DataConfig, separator: str = "\n") -> Encoded[EncodedSteps]:
    """Answers in steps, at most `config.max_tokens` long; targets are the last tokens of the steps, see `Encoder.encode_steps`.

    Steps that truncation cuts off, or into, are left out with their labels.

    Raises:
        DataError: rows do not fit and `config.on_bad_row` is `stop`, or no row is left.
    """

    def one(row: StepwiseExample) -> EncodedSteps:
        whole, ends = encoder.encode_steps(row.prompt, row.steps, separator)
        left = fitted(encoder, row.prompt, separator.join(row.steps), config)
        gone = whole.target_mask.index(True) - left.target_mask.index(True)
        kept = {end - gone: label for end, label in zip(ends, row.labels, strict=True) if end - gone < len(left)}
        if not kept:
            raise RowError("no step is left whole after truncation")
        mask = tuple(place in kept for place in range(len(left)))
        return EncodedSteps(TokenSequence(left.input_ids, mask), tuple(kept.values()))

    return encode_records(loaded, StepwiseExample, one, config.on_bad_row)


def encode_prompts(
    loaded: Loaded,
    encoder: Encoder,
    limit: int,
    too_long: Literal["reject", "truncate"] = "reject",
    on_bad_row: Literal["stop", "skip"] = "stop",
) -> Encoded[EncodedPrompt]:
    """Prompts to sample after, at most `limit` tokens long.

    Raises:
        DataError: rows do not fit and `on_bad_row` is `stop`, or no row is left.
    """

    def one(record: Prompt) -> EncodedPrompt:
        ids = encoder.encode_prompt(record.prompt)
        if not ids:
            raise RowError("the prompt has no tokens")
        if len(ids) > limit:
            if too_long == "reject":
                keys = "max_prompt_tokens, or data.max_tokens - rollout.max_new_tokens"
                raise RowError(_too_long("the prompt", len(ids), limit, keys))
            ids = _without_beginning(ids, limit, encoder)
        return EncodedPrompt(ids, encoder.prompt_text(record.prompt), record.columns)

    return encode_records(loaded, Prompt, one, on_bad_row)


def encode_records(
    loaded: Loaded, kind: type[R], one: Callable[[R], T], on_bad_row: Literal["stop", "skip"]
) -> Encoded[T]:
    """Encode rows one by one; a `RowError` of one is a rejection with its origin.

    Raises:
        DataError: a record of another kind, rejections and `on_bad_row` is `stop`, or no row is left.
    """
    encoded: Encoded[T] = Encoded([], [], [])
    for record, origin in zip(loaded.records, loaded.origins, strict=True):
        if not isinstance(record, kind):
            raise DataError(
                f"{origin} holds a record of kind {type(record).__name__}; {kind.__name__} is needed: "
                f"read_records(config, want={kind.__name__})"
            )
        try:
            encoded.items.append(one(record))
            encoded.origins.append(origin)
        except RowError as error:
            encoded.rejections.append(Rejection(origin, str(error)))
    if on_bad_row == "stop" or not encoded.items:
        stop_on(encoded.rejections, loaded.path, len(loaded.records), _CURE)
    if not encoded.items:
        raise DataError(f"{loaded.path} has no row that can be used")
    if encoded.rejections:
        reasons = count_reasons(encoded.rejections)
        logger.warning(
            "%s: %d of %d rows left out: %s", loaded.path, len(encoded.rejections), len(loaded.records), reasons
        )
    return encoded


def fitted(encoder: Encoder, prompt: Text, completion: Text, config: DataConfig, what: str = "") -> TokenSequence:
    """The encoded row if it is within both limits, or what truncation leaves of it.

    Raises:
        RowError: too long and not to be truncated, or nothing of the completion would be left.
    """
    sequence = encoder.encode_example(prompt, completion)
    limit, prompt_limit = config.max_tokens, config.max_prompt_tokens
    if True not in sequence.target_mask:
        raise RowError(f"{what}has no token to learn")
    prompt_length = sequence.target_mask.index(True)
    if config.too_long == "reject":
        if prompt_limit is not None and prompt_length > prompt_limit:
            raise RowError(_too_long("the prompt", prompt_length, prompt_limit, "max_prompt_tokens"))
        if len(sequence) > limit:
            raise RowError(_too_long(what.strip() or "the row", len(sequence), limit, "max_tokens"))
        return sequence
    return _truncated(sequence, prompt_length, encoder, limit, prompt_limit or prompt_length)


def _truncated(sequence: TokenSequence, cut: int, encoder: Encoder, limit: int, prompt_limit: int) -> TokenSequence:
    """The prompt loses its beginning if it is longer than `prompt_limit`, then the completion its end."""
    prompt = sequence.input_ids[:cut]
    if len(prompt) > prompt_limit:
        prompt = _without_beginning(prompt, prompt_limit, encoder)
    room = limit - len(prompt)
    if room < 1:
        raise RowError(
            f"the prompt alone has {len(prompt)} tokens, limit {limit} (data.max_tokens): nothing of the completion "
            "would be left. Set a smaller data.max_prompt_tokens, or raise data.max_tokens"
        )
    mask = (False,) * len(prompt) + sequence.target_mask[cut : cut + room]
    return TokenSequence(prompt + sequence.input_ids[cut : cut + room], mask)


def _without_beginning(ids: tuple[int, ...], limit: int, encoder: Encoder) -> tuple[int, ...]:
    """The last `limit` tokens; a BOS at the start stays where it is."""
    bos = encoder.tokenizer.bos_token_id
    keep = 1 if limit > 1 and bos is not None and ids[0] == bos else 0
    return ids[:keep] + ids[len(ids) - limit + keep :]


def _too_long(what: str, length: int, limit: int, key: str) -> str:
    return f"{what} has {length} tokens, limit {limit} (data.{key})"
