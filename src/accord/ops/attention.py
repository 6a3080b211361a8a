"""Causal attention whose backward pass is made for the short sequences of packed batches.

On CPU the backward kernel behind `scaled_dot_product_attention` takes ten times as long as its forward kernel for a hundred
tokens in bfloat16. Here backward computes the probabilities again, block of queries by block, with batched matrix products:
scores and softmax in float32, the products that follow in the inputs' type. Float32 and long sequences keep the kernel, which
is faster there.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

QUERIES = 192
"""Most queries in a block of the backward pass."""
LONGEST = 512
"""Most keys for which this backward pass is faster than the kernel's."""
BLOCK = 256
"""Queries of one call of the kernel where a mask is needed: each block computes the keys up to its own end only."""
Masks = dict[tuple[Any, ...], Tensor]
"""Additive masks by what they depend on, made once for all layers of a forward pass."""


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    dropout: float = 0.0,
    masks: Masks | None = None,
) -> Tensor:
    """softmax(scale Q K^T) V, where each query sees the keys up to its own place; the queries are those of the last tokens.

    Args:
        query: [1, heads, Q, D]
        key: [1, key-value heads, K, D], K at least Q; each key-value head serves as many heads in a row.
        value: [1, key-value heads, K, E]; E may differ from D, as in DeepSeek's latent attention.
        scale: of the scores; 1 / sqrt(D) if not given.
        window: a token sees this many last tokens, itself included.
        dropout: on the attention weights.
        masks: takes the masks that are made, for the calls that follow.

    Returns:
        [1, heads, Q, E]
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    masks = {} if masks is None else masks
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    ours = query.device.type == "cpu" and query.dtype.itemsize == 2 and key.shape[2] <= LONGEST and dropout == 0.0
    if learns and ours:
        return _CausalAttention.apply(query, key, value, factor, window, masks)  # type: ignore[no-untyped-call, no-any-return]
    return _kernel(query, key, value, factor, window, dropout, masks)


def _kernel(
    query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, dropout: float, masks: Masks
) -> Tensor:
    """The same by `scaled_dot_product_attention`; in blocks of queries where it needs a mask."""
    queries, keys = query.shape[2], key.shape[2]
    attend = partial(
        functional.scaled_dot_product_attention,
        dropout_p=dropout,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    if queries == keys and (window is None or keys <= window):
        return attend(query, key, value, is_causal=True)
    outputs, end = [], keys - queries
    for block in torch.split(query, BLOCK, 2):
        end += block.shape[2]
        start = 0 if window is None else max(0, end - block.shape[2] - window + 1)
        mask = _mask(block, end - start, window, masks)
        outputs.append(attend(block, key[:, :, start:end], value[:, :, start:end], attn_mask=mask))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


def _mask(query: Tensor, keys: int, window: int | None, masks: Masks) -> Tensor:
    """Causal mask of the last Q of `keys` tokens within a sliding window, [Q, keys] to be added to the scores. It is of the
    queries' own type: attention would turn true and false into that in each layer anew, and keep it for the backward pass."""
    queries, device = query.shape[2], query.device
    kind = (queries, keys, window, query.dtype, device)
    if kind not in masks:
        masks[kind] = query.new_zeros(queries, keys).masked_fill(_hidden(queries, keys, window, device), -torch.inf)
    return masks[kind]


def _hidden(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Which of the keys each of the last `queries` tokens does not see, bool [queries, keys]."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return distance < 0 if window is None else (distance < 0) | (distance >= window)


class _CausalAttention(torch.autograd.Function):
    """With P = softmax(S), S = scale Q K^T: dV = P^T dO;  dS = P (dO V^T - rowsum(P dO V^T));  dQ = scale dS K;
    dK = scale dS^T Q."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, masks: Masks
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale, ctx.window = scale, window
        return _kernel(query, key, value, scale, window, 0.0, masks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        heads, queries, width = query.shape[1:]
        kinds, keys = key.shape[1:3]
        exact = torch.promote_types(query.dtype, torch.float32)
        exact_key, exact_value = key[0].to(exact), value[0].to(exact)
        plain_key = key[0]
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(exact_key), torch.zeros_like(exact_value)
        size = math.ceil(
            queries / math.ceil(queries / QUERIES)
        )  # equal blocks: a small rest costs as much as a whole one
        for start in range(0, queries, size):
            end = min(start + size, queries)
            last = keys - queries + end
            first = 0 if ctx.window is None else max(0, keys - queries + start + 1 - ctx.window)
            # The heads that share a key-value head are one matrix: [key-value heads, group x queries, ...].
            rows = query[0, :, start:end].reshape(kinds, -1, width)
            grad = gradients[0][0, :, start:end].reshape(kinds, -1, value.shape[-1])
            scores = torch.bmm(rows.to(exact), exact_key[:, first:last].transpose(1, 2)).mul_(ctx.scale)
            _hide(scores.view(kinds, heads // kinds, end - start, -1), ctx.window)
            p = torch.softmax(scores, dim=-1)
            slope = torch.bmm(grad.to(exact), exact_value[:, first:last].transpose(1, 2))
            slope = slope.sub_((p * slope).sum(-1, keepdim=True)).mul_(p).mul_(ctx.scale)
            p, slope = p.to(query.dtype), slope.to(query.dtype)
            grad_query[0, :, start:end] = torch.bmm(slope, plain_key[:, first:last]).view(heads, end - start, width)
            grad_key[:, first:last] += torch.bmm(slope.transpose(1, 2), rows)
            grad_value[:, first:last] += torch.bmm(p.transpose(1, 2), grad)
        return grad_query, grad_key.to(key.dtype)[None], grad_value.to(value.dtype)[None], None, None, None


def _hide(scores: Tensor, window: int | None) -> None:
    """Set scores [..., queries, keys] to -inf where the query, one of the last, does not see the key."""
    queries, keys = scores.shape[-2:]
    later = torch.ones(queries, queries, dtype=torch.bool, device=scores.device).triu_(1)
    scores[..., keys - queries :].masked_fill_(later, -torch.inf)
    if window is not None and keys > window:
        scores.masked_fill_(_hidden(queries, keys, window, scores.device), -torch.inf)
