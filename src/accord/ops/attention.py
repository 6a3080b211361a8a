"""Causal attention whose backward pass is made for the short sequences of packed batches.

On CPU the backward kernel behind `scaled_dot_product_attention` takes ten times as long as its forward kernel for a hundred
tokens in bfloat16. Here backward computes the probabilities again, block of queries by block, with batched matrix products:
scores and softmax in float32, the products that follow in the inputs' type. Float32 and long sequences keep the kernel, which
is faster there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

QUERIES = 192
"""Most queries in a block of the backward pass."""
LONGEST = 512
"""Most keys for which this backward pass is faster than the kernel's."""


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, window: int | None = None
) -> Tensor:
    """softmax(scale Q K^T) V, where each query sees the keys up to its own place; the queries are those of the last tokens.

    Args:
        query: [1, heads, Q, D]
        key, value: [1, key-value heads, K, D], K at least Q; each key-value head serves as many heads in a row.
        scale: of the scores; 1 / sqrt(D) if not given.
        window: a token sees this many last tokens, itself included.

    Returns:
        [1, heads, Q, D]
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    if learns and query.device.type == "cpu" and query.dtype.itemsize == 2 and key.shape[2] <= LONGEST:
        return _CausalAttention.apply(query, key, value, factor, window)  # type: ignore[no-untyped-call, no-any-return]
    return _forward(query, key, value, factor, window)


def causal_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """Causal mask of the last `queries` of `keys` tokens within a sliding window, bool [queries, keys]; `None` where plain
    causal attention is the same."""
    if queries == keys and (window is None or keys <= window):
        return None
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def _forward(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    mask = causal_mask(query.shape[2], key.shape[2], window, query.device)
    grouped = query.shape[1] != key.shape[1]
    return functional.scaled_dot_product_attention(
        query, key, value, mask, 0.0, mask is None, scale=scale, enable_gqa=grouped
    )


class _CausalAttention(torch.autograd.Function):
    """With P = softmax(S), S = scale Q K^T: dV = P^T dO;  dS = P (dO V^T - rowsum(P dO V^T));  dQ = scale dS K;
    dK = scale dS^T Q."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale, ctx.window = scale, window
        return _forward(query, key, value, scale, window)

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
            grad = gradients[0][0, :, start:end].reshape(kinds, -1, width)
            scores = torch.bmm(rows.to(exact), exact_key[:, first:last].transpose(1, 2)).mul_(ctx.scale)
            _hide(scores.view(kinds, heads // kinds, end - start, -1), ctx.window)
            p = torch.softmax(scores, dim=-1)
            slope = torch.bmm(grad.to(exact), exact_value[:, first:last].transpose(1, 2))
            slope = slope.sub_((p * slope).sum(-1, keepdim=True)).mul_(p).mul_(ctx.scale)
            p, slope = p.to(query.dtype), slope.to(query.dtype)
            grad_query[0, :, start:end] = torch.bmm(slope, plain_key[:, first:last]).view(heads, end - start, width)
            grad_key[:, first:last] += torch.bmm(slope.transpose(1, 2), rows)
            grad_value[:, first:last] += torch.bmm(p.transpose(1, 2), grad)
        return grad_query, grad_key.to(key.dtype)[None], grad_value.to(value.dtype)[None], None, None


def _hide(scores: Tensor, window: int | None) -> None:
    """Set scores [..., queries, keys] to -inf where the query, one of the last, does not see the key."""
    queries, keys = scores.shape[-2:]
    later = torch.ones(queries, queries, dtype=torch.bool, device=scores.device).triu_(1)
    scores[..., keys - queries :].masked_fill_(later, -torch.inf)
    if window is not None and keys > window:
        mask = causal_mask(queries, keys, window, scores.device)
        assert mask is not None
        scores.masked_fill_(~mask, -torch.inf)
