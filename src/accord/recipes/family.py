"""What a recipe asks that its model's family cannot do: said before any weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from transformers import PreTrainedModel

from accord.config import ClassifyRecipe, LoraConfig, Recipe, RewardRecipe, RolloutRecipe
from accord.data import read_records
from accord.errors import ConfigError, DataError
from accord.model.adapter_files import saved_config
from accord.model.adapters import AdapterSet
from accord.model.classifiers import head_shape, refuse_without_words
from accord.model.forward import why_whole
from accord.model.loading import (
    Location,
    check_quantizable,
    locate,
    make_skeleton,
    read_adapter_config,
    read_config,
    refuse_scorer,
    trunk_of,
)
from accord.model.methods import check_dora, check_targets, peft_config
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
    if isinstance(recipe, RolloutRecipe) and recipe.rollout.speculative is not None and reading.way != "packed":
        raise ConfigError(
            f"rollout.speculative: a step over drafts needs a model that is read packed, and {base} is not: {reading.why}; leave "
            "it out"
        )
    if recipe.model.quantize != "none":
        _check_quantize(recipe, base, skeleton)
    if isinstance(recipe, RewardRecipe):
        refuse_scorer(base, config)
    if isinstance(recipe, ClassifyRecipe):
        head_shape(base, config, recipe.algorithm.level)
    if recipe.adapter is not None and not type(recipe.adapter).mergeable:
        check_virtual_tokens(recipe.adapter.method, base, reading, skeleton)
    if location.adapter is None:
        check_targets(getattr(recipe.adapter, "targets", None), base, skeleton)
    if reading.way == "encoder-decoder" and not isinstance(recipe, RolloutRecipe):
        _check_prompts(recipe, base)
    if isinstance(recipe.adapter, LoraConfig):
        _check_experts(recipe.adapter, location, skeleton)
    return reading


def _check_experts(adapter: LoraConfig, location: Location, skeleton: PreTrainedModel) -> None:
    """Refuse what peft cannot do on experts that are stacked weights. `skeleton` has no weights and gets adapters for a trial, so
    that peft says which of its layers they would be on."""
    asked = [key for key in ("dora", "dropout") if getattr(adapter, key)]
    if location.adapter is not None and "dora" in asked:  # the saved one's shape is kept
        asked.remove("dora")
    if not asked or not any(weight.ndim > 2 for weight in skeleton.parameters()):
        return
    fresh = adapter.model_copy(update={"dora": False, "dropout": 0.0})
    config: Any = peft_config(fresh, location.base) if location.adapter is None else saved_config(location.adapter)
    config.lora_dropout = 0.0
    config.modules_to_save = None
    AdapterSet(skeleton, location.base, thin=False).add("trial", config)
    if any(isinstance(module, ParamWrapper) for module in skeleton.modules()):
        raise ConfigError(
            f"adapter.{asked[0]}: {location.base} keeps its experts as stacked weights, which peft adapts by plain LoRA alone, "
            "without DoRA and dropout: leave it out, or name targets without them: "
            '--adapter.targets "[q_proj, k_proj, v_proj, o_proj]"'
        )


def _check_quantize(recipe: Recipe, base: str, skeleton: PreTrainedModel) -> None:
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.quantize: {recipe.model.quantize} needs the package bitsandbytes, which is not installed: "
            'pip install "accord[quant]"'
        )
    check_quantizable(base, skeleton)
    dora = _dora(recipe)
    if recipe.model.quantize == "nf4" and dora is not None:
        layers = (module for module in trunk_of(skeleton).modules() if isinstance(module, nn.Linear))
        check_dora(dora, base, (layer.in_features for layer in layers))


def _dora(recipe: Recipe) -> str | None:
    """What makes the adapter a DoRA one: the recipe, or that which it goes on from; `None` if it is none."""
    folder = locate(recipe.model.source).adapter
    if folder is not None:
        return f"{folder} is a DoRA adapter" if read_adapter_config(folder).get("use_dora") else None
    return "adapter.dora" if getattr(recipe.adapter, "dora", False) else None


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
