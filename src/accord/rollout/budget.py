"""How many sequences the engine decodes together."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from accord.config.rollout import sequences_that_fit


def choose_rows(trunk: nn.Module, columns: int, memory: int) -> int:
    """Rows of a cache, see `sequences_that_fit`.

    It is the memory that the device has and not what is free of it just now, so that a run that is resumed decodes in the same
    batches, whose sums have the same last bits.

    Args:
        trunk: the model that samples.
        columns: tokens of the longest sequence.
        memory: bytes of the device.
    """
    weights = sum(parameter.nbytes for parameter in trunk.parameters())
    return sequences_that_fit(memory - weights, row_bytes(trunk) * columns)


def row_bytes(trunk: nn.Module) -> int:
    """Bytes that one token's keys and values take in a cache, from the config alone; layers that keep less, such as windows and
    recurrent states, are counted like the others."""
    config: Any = trunk.config
    text = config.get_text_config(decoder=True)
    heads = (
        getattr(text, "num_attention_heads", None) or 1
    )  # none in Mamba, whose states are counted as one head's keys
    keyed = getattr(text, "num_key_value_heads", None) or heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    values = int(text.num_hidden_layers * 2 * keyed * size)
    return values * torch.finfo(next(trunk.parameters()).dtype if _floats(trunk) else torch.float32).bits // 8


def _floats(trunk: nn.Module) -> bool:
    return next(trunk.parameters()).dtype.is_floating_point
