"""Attention over sequences that lie end to end: each attends to itself alone, and no mask is ever built.

Registered with transformers as `accord_segments`. A model that is called with `segment_bounds` (see `packed_arguments`) runs
one scaled-dot-product attention per sequence, which costs sum(L^2) and not (sum L)^2, and cannot leak from one sequence to the
next. Where sequences share a prefix, a segment is what a sequence has of its own, and its `key_paths` say whose tokens precede
it. A decoding step over a cache is called with `step` (see `Step`): one attention over the rows of the cache. Any other call
would attend across padding, so it fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_flash_attn_2_available

from accord.batch import TokenBatch
from accord.errors import ModelError
from accord.ops.attention import Masks, causal_attention

SEGMENTS = "accord_segments"
FLASH = "accord_flash"


@dataclass
class Step:
    """A decoding step: the new tokens of each row of a cache lie end to end as [1, N], in the order of the rows.

    Keys and values are those of the cache, [rows, heads, columns, D], each row filled from its first column on. The N queries
    are put into rows only for the attention itself, so linear layers compute no padding.
    """

    seen_BQ: Tensor
    """How many keys of its row each query may see, itself included, int64 [B, Q]; 0 where a row has fewer than Q new tokens."""
    width: int
    """Columns that any query sees."""
    _masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)
    _places: Tensor | None = None

    @property
    def places_N(self) -> Tensor | None:
        """Place of each new token in the flattened [B, Q]; `None` where each row has Q."""
        if self.seen_BQ.shape[1] > 1 and self._places is None:
            self._places = (self.seen_BQ.flatten() > 0).nonzero().flatten()
        return self._places

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to the scores, [B, 1, Q, width]; made once for all layers."""
        key = (window, dtype)
        if key not in self._masks:
            seen_BQ1 = self.seen_BQ[:, :, None].clamp(
                min=1
            )  # a query that is none sees one key, so that nothing is NaN
            columns = torch.arange(self.width, device=self.seen_BQ.device)
            sees = columns < seen_BQ1
            if window is not None:
                sees = sees & (columns >= seen_BQ1 - window)
            added = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
            self._masks[key] = added.masked_fill_(~sees, -torch.inf)[:, None]
        return self._masks[key]


def _step_attention(
    query: Tensor, key: Tensor, value: Tensor, step: Step, scaling: float | None, dropout: float, window: int | None
) -> Tensor:
    """Attention of new tokens [1, heads, N, D] over the rows of a cache; returns [1, N, heads, D]."""
    rows, queries = step.seen_BQ.shape
    new_NHD, places_N = query[0].transpose(0, 1), step.places_N
    if places_N is not None:
        padded = new_NHD.new_zeros(rows * queries, *new_NHD.shape[1:])
        new_NHD = padded.index_copy(0, places_N, new_NHD)
    out = functional.scaled_dot_product_attention(
        new_NHD.unflatten(0, (rows, queries)).transpose(1, 2),
        key[:, :, : step.width],
        value[:, :, : step.width],
        step.mask(window, query.dtype),
        dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    out = out.transpose(1, 2).flatten(0, 1)
    return (out if places_N is None else out[places_N])[None]


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segment_bounds: list[int] | None = None,
    key_bounds: list[int] | None = None,
    key_paths: Sequence[Sequence[tuple[int, int]]] | None = None,
    masks: Masks | None = None,
    step: Step | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of packed sequences, or of one decoding step over a cache.

    Args:
        module: the attention layer (its signature is given by transformers).
        query: [B, heads, Q, D]; key, value: [B, key-value heads, K, D]. B = 1 for packed sequences.
        attention_mask: none; what a query sees follows from the other arguments.
        scaling: factor of the scores, 1/sqrt(D) if not given.
        dropout: on the attention weights.
        segment_bounds: [0, end of sequence 1, ..., T] for packed sequences.
        key_bounds: the same of the keys, where a prefix comes before those of each sequence; every token sees it.
        key_paths: for each segment whose keys precede its own (see `Layout.paths`), where prefixes are shared.
        masks: takes the masks that are made, for the layers that follow.
        step: of a decoding step; the keys and values are then those of a cache's rows.
        sliding_window: a token sees this many last tokens, itself included.
        softcap, s_aux: soft-capped scores and attention sinks, which this attention does not compute.

    Returns:
        [B, Q, heads, D], and no weights.

    Raises:
        ModelError: the layer asks for something that is not computed here.
    """
    if softcap is not None or s_aux is not None:
        what = "soft-capped attention scores" if softcap is not None else "attention sinks"
        raise ModelError(f"{type(module).__name__} has {what}, which {SEGMENTS} attention does not compute")
    if segment_bounds is not None or step is not None:
        _check_causal(module, attention_mask)
    if step is not None:
        return _step_attention(query, key, value, step, scaling, dropout, sliding_window), None
    if segment_bounds is None:
        if query.shape[2] != key.shape[2]:
            raise ValueError(f"{SEGMENTS} attention over a cache needs a `step`")
        if query.shape[0] > 1 or attention_mask is not None:
            raise ValueError(f"{SEGMENTS} attention does not see padding; call the model with segment_bounds instead")
        segment_bounds = [0, query.shape[2]]
    lengths = _lengths(segment_bounds)
    queries = query.split(lengths, 2)  # one split and not a slice a segment, whose backward would fill zeros each time
    keys = key.split(_lengths(key_bounds or segment_bounds), 2)
    values = value.split(_lengths(key_bounds or segment_bounds), 2)
    masks = {} if masks is None else masks
    outputs = []
    for n, own in enumerate(queries):
        path = key_paths[n] if key_paths is not None else ()
        outputs.append(
            causal_attention(
                own,
                _joined(keys, path, n),
                _joined(values, path, n),
                scale=scaling,
                window=sliding_window,
                dropout=dropout,
                masks=masks,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None  # some families view it


def _check_causal(module: nn.Module, mask: Tensor | None) -> None:
    """Refuse a layer of which packed attention would leave something out.

    Raises:
        ModelError: it names the layer.
    """
    if not getattr(module, "is_causal", True):
        raise ModelError(f"{type(module).__name__} sees what comes later, too, which packed attention does not compute")
    if mask is not None:
        raise ModelError(f"{type(module).__name__} makes a mask of its own, which packed attention would leave out")


def _lengths(bounds: Sequence[int]) -> list[int]:
    return [end - start for start, end in pairwise(bounds)]


def _joined(segments: Sequence[Tensor], path: Sequence[tuple[int, int]], own: int) -> Tensor:
    """Keys or values of a segment behind those on its path: [1, heads, K, D]."""
    if not path:
        return segments[own]
    return torch.cat([*(segments[n][:, :, :count] for n, count in path), segments[own]], 2)


def flash_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **arguments: Any
) -> tuple[Tensor, None]:
    """Flash attention's variable-length kernels for packed sequences, `segment_attention` for a decoding step.

    Registered as `accord_flash`. For the arguments see `segment_attention`.
    """
    if arguments.get("segment_bounds") is None:
        return segment_attention(module, query, key, value, attention_mask, **arguments)
    _check_causal(module, attention_mask)
    for ours in ("segment_bounds", "key_bounds", "key_paths", "masks"):
        arguments.pop(ours, None)
    places = arguments.pop("key_places", None)
    if places is not None:
        key, value = key.index_select(2, places), value.index_select(2, places)
    packed: Any = ALL_ATTENTION_FUNCTIONS["flash_attention_2"]
    output, _ = packed(module, query, key, value, None, **arguments)
    return output, None


def packed_arguments(batch: TokenBatch, shares: bool = False) -> dict[str, Any]:
    """Keyword arguments with which a transformers model reads a packed batch, for both attention implementations.

    No `attention_mask` and no cache: with either, transformers' own implementations let sequences see each other. With
    `shares` the model computes the tokens of `batch.layout`, not those of the batch.
    """
    if shares and batch.layout.shares:
        return _shared_arguments(batch)
    longest = int(batch.lengths_N.max())
    return {
        "input_ids": batch.input_ids_T[None],
        "position_ids": batch.position_ids_T[None],
        "use_cache": False,
        "segment_bounds": batch.cu_seqlens.tolist(),
        "masks": {},
        "cu_seq_lens_q": batch.cu_seqlens,
        "cu_seq_lens_k": batch.cu_seqlens,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _shared_arguments(batch: TokenBatch) -> dict[str, Any]:
    """The same with prefixes in common computed once. Flash attention gets each segment's keys gathered, and aligns the last
    query with the last key."""
    layout, like = batch.layout, batch.cu_seqlens
    key_bounds, key_places = layout.keys()
    return {
        "input_ids": batch.input_ids_T[layout.source_U][None],
        "position_ids": batch.position_ids_T[layout.source_U][None],
        "use_cache": False,
        "segment_bounds": list(layout.bounds),
        "key_paths": layout.paths,
        "key_places": torch.tensor(key_places, device=like.device),
        "masks": {},
        "cu_seq_lens_q": like.new_tensor(layout.bounds),
        "cu_seq_lens_k": like.new_tensor(key_bounds),
        "max_length_q": max(_lengths(layout.bounds)),
        "max_length_k": max(_lengths(key_bounds)),
    }


def choose_attention(device: torch.device, dtype: torch.dtype) -> str:
    """Flash attention's variable-length kernels where they are installed and run, else segments of SDPA."""
    flash = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and is_flash_attn_2_available()
    return FLASH if flash else SEGMENTS


AttentionInterface.register(SEGMENTS, segment_attention)
AttentionInterface.register(FLASH, flash_attention)
