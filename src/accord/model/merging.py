"""Adapters as they lie in folders: of which method they are, and how they become part of their base."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError

from accord.config import METHODS, ModelConfig
from accord.data.conditioning import read_conditioning
from accord.errors import ModelError, RunError
from accord.model.adapter_files import is_factor, saved_config, saved_tensors
from accord.model.card import write_card
from accord.model.classifiers import load_for_adapter, read_labels
from accord.model.loading import (
    distinct_padding,
    first_line,
    is_scorer,
    load_tokenizer,
    load_weights,
    locate,
    read_adapter_config,
    weight_type,
)
from accord.model.methods import METHOD_OF, PAST_LAYER
from accord.model.saving import save_model
from accord.model.score_facts import read_facts, write_facts

TAKEN_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""How values of peft's `init_lora_weights` begin that take the start out of the base's weights, which are others from then on."""
REPEATABLE = ("pissa", "olora")
"""Those that peft does again when it loads the adapter, with the same result: they need neither random numbers nor data."""


def method_of_folder(folder: Path) -> str:
    """The method of a saved adapter, as recipes call it; peft's own name if they have none."""
    kind = str(read_adapter_config(folder)["peft_type"])
    return METHOD_OF.get(kind, kind)


def refuse_changed_base(folder: Path, repeatable: bool = False) -> None:
    """Refuse an adapter that stands on other weights than those of the base that it names.

    Args:
        folder: of the adapter.
        repeatable: whether its base may be changed again, where that gives the same weights.

    Raises:
        ModelError: it does.
    """
    start = str(read_adapter_config(folder).get("init_lora_weights")).lower()
    if not start.startswith(TAKEN_FROM_BASE) or (repeatable and start in REPEATABLE):
        return
    how = "convert it to plain LoRA where it was made (peft: save_pretrained(..., path_initial_model_for_weight_conversion=...))"
    if start in REPEATABLE:
        how = f"fold it in with `accord merge {quote(str(folder))} FOLDER` and use FOLDER"
    why = "cannot be told from its files" if repeatable else "are not those of a base that serves several roles"
    raise ModelError(
        f"{folder} was started from its base's own weights (init_lora_weights: {start}); what is left of these {why}: {how}"
    )


def has_virtual_tokens(folder: Path) -> bool:
    """Whether a saved adapter stands beside the base's weights, and so cannot be folded into them."""
    method = method_of_folder(folder)
    return method in METHODS and not METHODS[method].mergeable


def check_mergeable(folder: Path, purpose: str) -> None:
    """Refuse an adapter that cannot be folded into its base, before anything is loaded.

    Args:
        folder: of the adapter.
        purpose: what it would be folded in for, and what to do instead.

    Raises:
        ModelError: it has virtual tokens.
    """
    if has_virtual_tokens(folder):
        raise ModelError(
            f"{folder} is a {method_of_folder(folder)} adapter: its virtual tokens stand beside the base's weights and "
            f"cannot be folded into them; {purpose}"
        )


def folded_in(model: Any, folder: Path, dtype: torch.dtype | None = None) -> Any:
    """A model with a saved adapter as part of its weights; the one that is given is used up. Each sum is made in float32, one
    layer at a time, and rounded once.

    Args:
        model: of transformers, as the adapter's task needs it.
        folder: of the adapter.
        dtype: type of the sums; without it that of the layers as they are.

    Raises:
        ModelError: the adapter changes one of several layers that are one weight, such as a tied embedding: all would change;
            or a layer that its family reads past; or the weights below it are not known.
    """
    refuse_changed_base(folder, repeatable=True)
    layers_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        layers_of.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    tied = {layer: layers for layers in layers_of.values() if len(layers) > 1 for layer in layers}
    wrapped = _wrapped(model, folder)
    for layer in wrapped.base_model.targeted_module_names:
        if layer in tied:
            others = ", ".join(other for other in tied[layer] if other != layer)
            raise ModelError(
                f"{folder} adapts {layer}, whose weight is also that of {others} (tie_word_embeddings), so folded in it would "
                "change both: use the adapter as it is, or train one without that layer (adapter.targets)"
            )
        if layer.rpartition(".")[2] in PAST_LAYER.get(model.config.model_type, ()) and _adds(
            wrapped.base_model.model.get_submodule(layer)
        ):
            raise ModelError(
                f"{folder} adapts {layer}, whose weight {model.config.model_type} reads past the adapter, so folded in it would "
                "do what it does not as an adapter: use the adapter as it is, or train one without that layer (adapter.targets)"
            )
    for layer in wrapped.modules():
        if isinstance(layer, BaseTunerLayer):
            below = layer.get_base_layer()
            kinds = {parameter: parameter.dtype for parameter in below.parameters()}
            below.float()
            layer.merge(safe_merge=True)
            for parameter, kind in kinds.items():
                parameter.data = parameter.data.to(dtype or kind)
    return wrapped.unload()


def _wrapped(model: Any, folder: Path) -> Any:
    """The model with a saved adapter on it.

    Raises:
        ModelError: the adapter is damaged, or was trained on another base.
    """
    prunes, tensors = saved_config(folder).peft_type == peft.PeftType.ADALORA, saved_tensors(folder)
    why = f"{folder} does not fit its base {model.name_or_path or type(model).__name__}"
    again = (
        "the base is another than the adapter was trained on (base_model_name_or_path), or one of the two is damaged"
    )
    try:
        wrapped = peft.PeftModel.from_pretrained(model, str(folder))
        if prunes:  # its layers have the pruned ranks now, and would not take the weights again
            return wrapped
        told: Any = peft.set_peft_model_state_dict(wrapped, tensors)  # once more, since only this says what did not fit
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        raise ModelError(f"{why}: {again}. {first_line(error)}") from error
    odd = [key for key in told.unexpected_keys if is_factor(key)]
    missing = [key for key in told.missing_keys if ".default" in key and is_factor(key)]
    if odd or missing:
        raise ModelError(
            f"{why}: {again}. {len(odd)} tensors have no place, {len(missing)} are missing, such as {min(odd or missing)}"
        )
    return wrapped


def _adds(layer: Any) -> bool:
    """Whether an adapted layer differs from the one below it; what never learnt does not."""
    return bool(layer.get_delta_weight("default").any()) if hasattr(layer, "get_delta_weight") else True


def merge(adapter: Path, output: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> Path:
    """Fold an adapter into its base and save an ordinary model: W + (alpha / r) B A (for LoRA), added in float32, stored in
    `dtype`. The base of a language model is read in the type of its files, so with `dtype` the same there is no larger copy.

    A reward model's adapter gives a sequence-classification model, a classifier's a classifier with the names of its labels.

    Raises:
        ModelError: the folder is not an adapter, has virtual tokens, or its base cannot be loaded.
        RunError: `output` cannot be written.
    """
    location = locate(str(adapter))
    if location.adapter is None:
        raise ModelError(
            f"{adapter} is a whole model, so there is nothing to merge: it can be used as model.path as it is"
        )
    check_mergeable(location.adapter, "use it as it is (accord generate, or --model.path with its --adapter.method)")
    facts = read_labels(location, trust_remote_code)
    scorer = is_scorer(location) and facts is None
    cpu = torch.device("cpu")
    config = ModelConfig(path=str(adapter), trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(config, location)
    # Whole layers that the adapter brings, heads for one, would be rounded to the type of a base that is in 16 bits.
    brings = bool(read_adapter_config(location.adapter).get("modules_to_save"))
    kind = torch.float32 if scorer or facts is not None or brings else weight_type(config, location, trained=False)
    if facts is not None:
        base = load_for_adapter(location.base, facts, kind, trust_remote_code)
    else:
        base = load_weights(
            location.base, kind, cpu, scorer=scorer, headless=scorer, trust_remote_code=trust_remote_code
        )
    merged = folded_in(base, location.adapter, dtype)
    if scorer or facts is not None:
        merged.config.pad_token_id = distinct_padding(tokenizer)
    try:
        save_model(merged.to(dtype), output)
        tokenizer.save_pretrained(output)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"the merged model could not be written to {output}: {error}. What lies there is not whole; {adapter} is as it was"
        ) from error
    stored = read_facts(location) if scorer else None
    if stored is not None:
        write_facts(output, stored)
    conditioning = read_conditioning(location.adapter)
    if conditioning is not None:
        conditioning.save(output)
    write_card(output, trained_from=location.base)
    return output
