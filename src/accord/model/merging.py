"""Adapters as they lie in folders: of which method they are, and how they become part of their base."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import torch

from accord.config import METHODS, ModelConfig
from accord.data.conditioning import read_conditioning
from accord.errors import ModelError
from accord.model.card import write_card
from accord.model.classifiers import load_for_adapter, read_labels
from accord.model.loading import (
    ADAPTER_CONFIG,
    distinct_padding,
    is_scorer,
    load_tokenizer,
    load_weights,
    locate,
    quiet_progress,
)
from accord.model.methods import METHOD_OF
from accord.model.score_facts import read_facts, write_facts


def method_of_folder(folder: Path) -> str:
    """The method of a saved adapter, as recipes call it; peft's own name if they have none."""
    kind = str(json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("peft_type"))
    return METHOD_OF.get(kind, kind)


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


def merge(adapter: Path, output: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> Path:
    """Fold an adapter into its base and save an ordinary model: W + (alpha / r) B A (for LoRA), added in float32, stored in
    `dtype`.

    A reward model's adapter gives a sequence-classification model, a classifier's a classifier with the names of its labels.

    Raises:
        ModelError: the folder is not an adapter, has virtual tokens, or its base cannot be loaded.
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
    if facts is not None:
        base = load_for_adapter(location.base, facts, torch.float32, trust_remote_code)
    else:
        base = load_weights(
            location.base, torch.float32, cpu, scorer=scorer, headless=scorer, trust_remote_code=trust_remote_code
        )
    merged = peft.PeftModel.from_pretrained(base, str(location.adapter)).merge_and_unload(safe_merge=True)
    if scorer or facts is not None:
        merged.config.pad_token_id = distinct_padding(tokenizer)
    with quiet_progress():
        merged.to(dtype).save_pretrained(output)
    tokenizer.save_pretrained(output)
    stored = read_facts(location) if scorer else None
    if stored is not None:
        write_facts(output, stored)
    conditioning = read_conditioning(location.adapter)
    if conditioning is not None:
        conditioning.save(output)
    write_card(output, trained_from=location.base)
    return output
