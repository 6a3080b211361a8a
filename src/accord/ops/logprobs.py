"""Log-probabilities, entropies and divergences from hidden states, without ever building a [tokens, vocabulary] tensor.

The output layer turns K hidden states into K x V logits; at K = 4,096 and V = 262,144 that is 4 GiB in float32, and autograd
keeps several. Here the K target tokens go through in tiles of `TILE_ELEMENTS / V` rows; only one tile exists at a time, and
backward computes it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TILE_ELEMENTS = 1 << 23
"""Logits in a tile: 32 MiB of float32. Larger tiles were not faster on CPU, smaller ones cost matrix-product efficiency."""


def token_logprobs(
    hidden_KH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_K: Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target token, and the entropy of its distribution.

    p = softmax((hidden weight^T + bias) / temperature);  logprob = log p[target];  entropy = -sum_v p_v log p_v

    Args:
        hidden_KH: hidden state before each target token, any float type.
        weight_VH: output layer.
        bias_V: its bias, or `None`.
        targets_K: int64 token ids.
        temperature: positive.
        with_entropy: compute the entropy (one more pass over each tile), differentiable too.

    Returns:
        Log-probabilities and entropies in nats, float32 [K]; entropies are 0 unless asked for.
    """
    results: tuple[Tensor, Tensor] = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_KH, weight_VH, bias_V, targets_K, temperature, with_entropy
    )
    return results


def full_kl(
    hidden_KH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    ref_hidden_KH: Tensor,
    ref_weight_VH: Tensor,
    ref_bias_V: Tensor | None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Exact KL(policy || reference) at each token: sum_v p_v (log p_v - log q_v), in nats, float32 [K]. No gradient."""
    kl_K = torch.empty(len(hidden_KH), dtype=torch.float32, device=hidden_KH.device)
    with torch.no_grad():
        for rows in tiles(len(hidden_KH), len(weight_VH)):
            log_p = tile_logprobs(hidden_KH[rows], weight_VH, bias_V, temperature)
            log_q = tile_logprobs(ref_hidden_KH[rows], ref_weight_VH, ref_bias_V, temperature)
            kl_K[rows] = (log_p.exp() * (log_p - log_q)).sum(-1)
    return kl_K


def tiles(count: int, vocabulary: int) -> Iterator[slice]:
    """Rows of each tile of logits."""
    rows = max(1, TILE_ELEMENTS // vocabulary)
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def _logits(hidden_KH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    logits = functional.linear(hidden_KH.to(weight_VH.dtype), weight_VH, bias_V).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def tile_logprobs(hidden_KH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    """log softmax((hidden weight^T + bias) / temperature) of one tile, float32 [rows, V]."""
    return functional.log_softmax(_logits(hidden_KH, weight_VH, bias_V, temperature), dim=-1)


class LinearGradients:
    """Gradients of an output layer and of its input, added up tile by tile.

    Args:
        hidden_KH, weight_VH, bias_V: the layer's input, and the layer.
        needs: which of the three need one.
    """

    def __init__(self, hidden_KH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, needs: Sequence[bool]) -> None:
        self._hidden_KH, self._weight_VH, self._bias_V = hidden_KH, weight_VH, bias_V
        self._grad_hidden = torch.empty_like(hidden_KH) if needs[0] else None
        # The weight's gradient adds up over tiles: in float32, whatever the weight's own type.
        self._grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if needs[1] else None
        self._grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if needs[2] and bias_V is not None else None

    def add(self, rows: slice, grad: Tensor) -> None:
        """Take in the gradient of one tile's logits, float32 [rows, V]."""
        weight_VH = self._weight_VH
        grad = grad.to(weight_VH.dtype)
        if self._grad_hidden is not None:
            self._grad_hidden[rows] = (grad @ weight_VH).to(self._hidden_KH.dtype)
        if self._grad_weight is not None:
            self._grad_weight += (grad.T @ self._hidden_KH[rows].to(weight_VH.dtype)).float()
        if self._grad_bias is not None:
            self._grad_bias += grad.sum(0).float()

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of input, weight and bias, each in the type of what it belongs to."""
        weight = None if self._grad_weight is None else self._grad_weight.to(self._weight_VH.dtype)
        bias = None if self._grad_bias is None or self._bias_V is None else self._grad_bias.to(self._bias_V.dtype)
        return self._grad_hidden, weight, bias


class _TokenLogprobs(torch.autograd.Function):
    """d logprob / d logit_v = 1[v = target] - p_v;  d entropy / d logit_v = -p_v (log p_v + entropy)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_K: Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        logprobs_K = torch.empty(len(targets_K), dtype=torch.float32, device=hidden_KH.device)
        normalisers_K, entropies_K = torch.empty_like(logprobs_K), torch.zeros_like(logprobs_K)
        for rows in tiles(len(targets_K), len(weight_VH)):
            logits = _logits(hidden_KH[rows], weight_VH, bias_V, temperature)
            normaliser = torch.logsumexp(logits, dim=-1)
            normalisers_K[rows] = normaliser
            logprobs_K[rows] = logits.gather(-1, targets_K[rows, None]).squeeze(-1) - normaliser
            if with_entropy:
                log_p = logits.sub_(normaliser[:, None])
                entropies_K[rows] = -(log_p.exp() * log_p).sum(-1)
        ctx.save_for_backward(hidden_KH, weight_VH, bias_V, targets_K, normalisers_K, entropies_K)
        ctx.temperature, ctx.with_entropy = temperature, with_entropy
        ctx.set_materialize_grads(False)
        return logprobs_K, entropies_K

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_logprobs_K, grad_entropies_K = gradients
        hidden_KH, weight_VH, bias_V, targets_K, normalisers_K, entropies_K = ctx.saved_tensors
        if not ctx.with_entropy:
            grad_entropies_K = None
        sums = LinearGradients(hidden_KH, weight_VH, bias_V, ctx.needs_input_grad)
        for rows in tiles(len(targets_K), len(weight_VH)):
            log_p = _logits(hidden_KH[rows], weight_VH, bias_V, ctx.temperature).sub_(normalisers_K[rows, None])
            p = log_p.exp()
            grad = torch.zeros_like(p)
            if grad_logprobs_K is not None:
                grad -= p * grad_logprobs_K[rows, None]
                grad.scatter_add_(-1, targets_K[rows, None], grad_logprobs_K[rows, None])
            if grad_entropies_K is not None:
                grad -= p.mul_(log_p.add_(entropies_K[rows, None])).mul_(grad_entropies_K[rows, None])
            sums.add(rows, grad.div_(ctx.temperature))
        return *sums.result(), None, None, None
