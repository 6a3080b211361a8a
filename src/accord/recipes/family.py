"""What a recipe asks that its model's family cannot do: said before any weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from torch import nn
from transformers import PreTrainedModel

from accord.config import ClassifyRecipe, Recipe, RewardRecipe, RolloutRecipe
from accord.data import read_records
from accord.errors import ConfigError, DataError
from accord.model.classifiers import head_shape, refuse_without_words
from accord.model.forward import why_whole
from accord.model.loading import check_quantizable, locate, make_skeleton, read_config, refuse_scorer, trunk_of
from accord.model.prompts import check_virtual_tokens
from accord.model.reading import Reading, choose_reading, way_of
from accord.model.roles import Roles


def check_family(recipe: Recipe) -> Reading:
    """Refuse what the family of the recipe's model cannot do; returns how it will be read.

    Args:
        recipe: of any command.

    Raises:
        ModelError, ConfigError, DataError: it cannot, with the reason and another way.
    """
    location = locate(recipe.model.source)
    base = location.base
    config = read_config(base, recipe.model.trust_remote_code)
    if location.adapter is None and not isinstance(recipe, RewardRecipe | ClassifyRecipe):
        refuse_without_words(recipe.model.path, location, recipe.model.trust_remote_code)
    skeleton = make_skeleton(base, config, trust_remote_code=recipe.model.trust_remote_code)
    reading = choose_reading(base, skeleton)
    if recipe.model.quantize != "none":
        _check_quantize(recipe, base, skeleton)
    if isinstance(recipe, RewardRecipe):
        refuse_scorer(base, config)
    if isinstance(recipe, ClassifyRecipe):
        head_shape(base, config, recipe.algorithm.level)
    if recipe.adapter is not None and not type(recipe.adapter).mergeable:
        check_virtual_tokens(recipe.adapter.method, base, reading)
    if reading.way == "encoder-decoder" and not isinstance(recipe, RolloutRecipe):
        _check_prompts(recipe, base)
    return reading


def _check_quantize(recipe: Recipe, base: str, skeleton: PreTrainedModel) -> None:
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.quantize: {recipe.model.quantize} needs the package bitsandbytes, which is not installed: "
            'pip install "accord[quant]"'
        )
    check_quantizable(base, skeleton)
    if recipe.model.quantize == "nf4" and getattr(recipe.adapter, "dora", False):
        layers = (module for module in trunk_of(skeleton).modules() if isinstance(module, nn.Linear))
        odd = next((layer.in_features for layer in layers if layer.in_features % 64), None)
        if odd is not None:
            raise ConfigError(
                f"adapter.dora: peft dequantises weights with bitsandbytes, which gets NF4 wrong on a CPU for a width of {odd}, "
                f"no multiple of 64, as {base} has; use model.quantize: int8, or dora: false"
            )


def _check_prompts(recipe: Recipe, base: str) -> None:
    """An encoder-decoder model learns responses to prompts: each row needs both."""
    why = f"{base} is an encoder-decoder model: its encoder reads the prompt, its decoder learns the response"
    if recipe.data.train_on == "all":
        raise ConfigError(f"data.train_on: all learns prompts too, and {why}; use data.train_on: completion")
    for path in (recipe.data.path, recipe.data.eval_path):
        if path is None:
            continue
        loaded = read_records(recipe.data, path, recipe.rows_become)
        for record, origin in zip(loaded.records, loaded.origins, strict=True):
            prompt = getattr(record, "prompt", None)
            if isinstance(prompt, Sequence) and not prompt:
                raise DataError(
                    f"{origin} has no prompt ({loaded.format}), and {why}. Give rows with `prompt` and `completion`, or "
                    "take a causal model, which learns plain text"
                )


def reading_facts(roles: Roles) -> dict[str, str]:
    """For the header: that a model is not packed, which is slower, and why; and which roles compute prefixes again and again."""
    policy_or_reward = next(role for role in roles.roles.values() if role.shared)
    facts = {}
    if way_of(policy_or_reward.trunk) != "packed":
        reading = choose_reading(roles.location.base, roles.model)
        grouped = "prompts and responses" if reading.way == "encoder-decoder" else "sequences"
        facts["reads"] = f"{grouped} of one length together, not packed, which is slower: {reading.why}"
    whole = {role.name: why_whole(role.trunk, role.prompt) for role in roles.roles.values() if not role.shares}
    if whole:
        why = next((why for why in whole.values() if why), "model.share_prefixes is off")
        facts["prefixes"] = f"computed again for each sequence by the {', '.join(whole)}: {why}"
    return facts
