"""Each kind of adapter in a small size, and plain peft with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import peft
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from accord.config import (
    AdaLoraConfig,
    AdapterConfig,
    IA3Config,
    LoraConfig,
    PrefixConfig,
    PromptConfig,
    PTuningConfig,
)

KINDS: dict[str, AdapterConfig] = {
    "lora": LoraConfig(r=4, alpha=8),
    "rslora": LoraConfig(r=4, alpha=8, rslora=True),
    "dora": LoraConfig(r=4, alpha=8, dora=True),
    "adalora": AdaLoraConfig(init_r=4, target_r=2, alpha=8),
    "ia3": IA3Config(),
    "prompt": PromptConfig(tokens=3),
    "prompt_random": PromptConfig(tokens=4, init="random"),
    "prompt_text": PromptConfig(tokens=7, text="the film was good"),
    "prefix": PrefixConfig(tokens=3),
    "prefix_zero": PrefixConfig(tokens=3, init="zero"),
    "prefix_projected": PrefixConfig(tokens=4, projection=True, hidden=10),
    "ptuning": PTuningConfig(tokens=3, hidden=12),
    "ptuning_lstm": PTuningConfig(tokens=3, hidden=12, encoder="lstm"),
}
"""Every method, with the options that change what is computed."""
VIRTUAL = tuple(kind for kind, config in KINDS.items() if not config.mergeable)
ONE_EACH = ("lora", "dora", "adalora", "ia3", "prompt", "prefix", "ptuning_lstm")
"""One of each method, where all would take long."""


def plain_policy(folder: Path, base: Path) -> peft.PeftModel:
    """A saved policy as plain peft loads it over plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    return peft.PeftModel.from_pretrained(model, folder).eval()


def plain_scorer(folder: Path, base: Path, pad: int | None = None) -> peft.PeftModel:
    """A saved reward model as plain peft loads it over plain transformers."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, attn_implementation="eager")
    model.config.pad_token_id = pad
    return peft.PeftModel.from_pretrained(model, folder).eval()


def plain_logprobs(model: peft.PeftModel, ids: Sequence[Sequence[int]]) -> Tensor:
    """Log-probability of each token but each sequence's first, one sequence at a time; 0 for the first: float32 [T]."""
    parts = []
    for sequence in ids:
        row = torch.tensor([list(sequence)])
        logits = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, -len(sequence) :]
        chosen = logits.float().log_softmax(-1)[:-1].gather(-1, row[0, 1:, None]).squeeze(-1)
        parts += [torch.zeros(1), chosen]
    return torch.cat(parts)
