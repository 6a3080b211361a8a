"""What a run finds out before its first step, found out without weights: for `--dry-run`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

from transformers import GenerationConfig

from accord.config import ClassifyRecipe, CSFTRecipe, DataConfig, ExampleRecipe, Recipe, RolloutRecipe
from accord.data import (
    Encoded,
    Encoder,
    Loaded,
    encode_classes,
    encode_examples,
    encode_labelled,
    encode_pairs,
    encode_prompts,
    encode_steps,
    set_chat_template,
    stop_ids,
)
from accord.model.adapters import AdapterSet
from accord.model.device import choose_device
from accord.model.loading import Location, load_tokenizer, locate, make_skeleton, read_config, source_of
from accord.model.methods import peft_config
from accord.recipes.build import check_positions, check_vocabulary, load_split, read_rows
from accord.recipes.classify import choose_labels
from accord.recipes.csft import encode_unscored
from accord.recipes.examples import longest_of_pair
from accord.training.parallel import check_torchrun
from accord.training.sinks import check_sinks
from accord.types import Example, LabelledResponse, PreferencePair

Encode: TypeAlias = Callable[[Loaded, Encoder, DataConfig], Encoded[Any]]
Length: TypeAlias = Callable[[Any], int]


def check_surroundings(recipe: Recipe) -> None:
    """The device, the processes and the trackers that the recipe names.

    Raises:
        ConfigError: one of them is not there.
    """
    if recipe.placement.type == "torchrun":
        check_torchrun()
    choose_device(recipe.placement)
    check_sinks(recipe.train.sinks)


def rehearse(recipe: Recipe) -> dict[str, str]:
    """Encode all rows as a run would, and put the adapter on the base's shapes; the base must be on this machine.

    Returns:
        Facts about the rows, as a run's header has them.

    Raises:
        DataError: rows cannot be read or do not fit.
        ConfigError: sequences are longer than the model reads, or no layer has the name that the adapter targets.
        ModelError: a tokenizer or chat template cannot be used, or is not that of the other models of the recipe.
    """
    location = locate(recipe.model.source)
    encoder = open_encoder(recipe, location)
    for section in ("reference", "critic"):
        path = getattr(getattr(recipe, section, None), "path", None)
        if path is not None:
            check_vocabulary(path, recipe.model, encoder.tokenizer)
    for path in (path for term in getattr(recipe, "reward", ()) for path in term.paths):
        check_vocabulary(path, recipe.model, encoder.tokenizer)
    check_targets(recipe, location)
    return _check_rows(recipe, encoder, location)


def open_encoder(recipe: Recipe, location: Location) -> Encoder:
    """The encoder that a run would use.

    Raises:
        ModelError: there is no tokenizer, or it has no EOS token; or the chat template is none.
    """
    tokenizer = load_tokenizer(recipe.model, location)
    if recipe.model.chat_template is not None:
        set_chat_template(tokenizer, recipe.model.chat_template)
    generation = None
    with suppress(OSError):  # a model need not have one
        generation = GenerationConfig.from_pretrained(source_of(location.base)[0])
    return Encoder(tokenizer, stop_ids(tokenizer, generation))


def check_targets(recipe: Recipe, location: Location) -> None:
    """Put the adapter on a model without weights.

    Raises:
        ConfigError: no layer of the base has a name that it targets.
    """
    adapter = recipe.adapter
    if adapter is None or not type(adapter).mergeable or location.adapter is not None:
        return
    remote = recipe.model.trust_remote_code
    skeleton = make_skeleton(location.base, read_config(location.base, remote), trust_remote_code=remote)
    AdapterSet(skeleton, location.base).add("policy", peft_config(adapter, location.base))


def _check_rows(recipe: Recipe, encoder: Encoder, location: Location) -> dict[str, str]:
    config = read_config(location.base, recipe.model.trust_remote_code)
    virtual = 0 if recipe.adapter is None else getattr(recipe.adapter, "tokens", 0)

    def fits(tokens: int, keys: str) -> None:
        check_positions(recipe.model.path, config, tokens, virtual, keys)

    encode, length = _way(recipe)
    split = load_split(recipe, lambda loaded, data: encode(loaded, encoder, data))
    longest = max(length(item) for item in (*split.train, *split.held_out))
    if isinstance(recipe, RolloutRecipe):
        fits(longest + recipe.rollout.max_new_tokens, "data.max_prompt_tokens or rollout.max_new_tokens")
    else:
        fits(longest, "data.max_tokens")
    facts = dict(split.facts)

    def examples(loaded: Loaded, data: DataConfig) -> Encoded[Any]:
        return encode_examples(loaded, encoder, data)

    if getattr(recipe.algorithm, "on_policy", 1) < 1:
        rows, _ = read_rows(recipe.data, Example, examples)
        fits(max(map(len, rows)), "data.max_tokens")
    ptx = getattr(recipe, "ptx", None)
    if ptx is not None:
        rows, told = read_rows(ptx.data, Example, examples)
        fits(max(map(len, rows)), "ptx.data.max_tokens")
        facts["ptx"] = told["data"]
    return facts


def _way(recipe: Recipe) -> tuple[Encode, Length]:
    """How the recipe encodes its rows, and how many tokens the longest sequence of one has."""
    if isinstance(recipe, RolloutRecipe):
        limit = recipe.prompt_limit

        def prompts(loaded: Loaded, encoder: Encoder, config: DataConfig) -> Encoded[Any]:
            return encode_prompts(loaded, encoder, limit, config.too_long, config.on_bad_row)

        return prompts, lambda prompt: len(prompt.ids)
    assert isinstance(recipe, ExampleRecipe)
    if isinstance(recipe, ClassifyRecipe):
        return partial(encode_classes, labels=choose_labels(recipe)), len
    if isinstance(recipe, CSFTRecipe):
        return encode_unscored(recipe), len
    if recipe.rows_become is Example:
        return encode_examples, len
    if recipe.rows_become is PreferencePair:
        return encode_pairs, longest_of_pair
    if recipe.rows_become is LabelledResponse:
        return encode_labelled, lambda row: len(row.sequence)
    step = recipe.algorithm.step  # type: ignore[attr-defined]  # a process reward model
    return partial(encode_steps, separator=step), lambda row: len(row.sequence)
