"""Log-probabilities, entropies and divergences from hidden states, without ever building a [tokens, vocabulary] tensor.

The output layer turns K hidden states into K x V logits; at K = 4,096 and V = 262,144 that is 4 GiB in float32, and autograd
keeps several. Here the K target tokens go through in tiles of `TILE_ELEMENTS / V` rows, and only one tile exists at a time.

Where the output layer is frozen, as with adapters, each tile exists once: d logprob_k / d hidden_k is a vector of H numbers that
needs nothing from backward but one factor, so forward computes it while the tile is there (as Liger Kernel, arXiv:2410.10989
section 3.2, does with the whole loss). Otherwise backward computes the tiles again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from accord.ops.products import input_gradient, linear

TILE_ELEMENTS = 1 << 23
"""Logits in a tile: 32 MiB of float32. Smaller ones cost matrix-product efficiency."""
BLOCK_ELEMENTS = 1 << 18
"""Logits that a thread of a CPU brings from the output layer's type to probabilities at once: they stay in its cache."""


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
    learns = weight_VH.requires_grad or (bias_V is not None and bias_V.requires_grad)
    at_once = torch.is_grad_enabled() and hidden_KH.requires_grad and not learns
    results: tuple[Tensor, Tensor] = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_KH, weight_VH, bias_V, targets_K, temperature, with_entropy, at_once
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
    logits = linear(hidden_KH, weight_VH, bias_V).float()
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
        """Take in the gradient of one tile's logits, [rows, V]."""
        weight_VH = self._weight_VH
        grad = grad.to(weight_VH.dtype)
        if self._grad_hidden is not None:
            self._grad_hidden[rows] = input_gradient(grad, weight_VH).to(self._hidden_KH.dtype)
        if self._grad_weight is not None:
            self._grad_weight += (grad.T @ self._hidden_KH[rows].to(weight_VH.dtype)).float()
        if self._grad_bias is not None:
            self._grad_bias += grad.sum(0).float()

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of input, weight and bias, each in the type of what it belongs to."""
        weight = None if self._grad_weight is None else self._grad_weight.to(self._weight_VH.dtype)
        bias = None if self._grad_bias is None or self._bias_V is None else self._grad_bias.to(self._bias_V.dtype)
        return self._grad_hidden, weight, bias


class _Tile:
    """Softmax of a tile of logits, block by block through two buffers that are used again for each block and each tile.

    Args:
        vocabulary: V.
        device: of the logits.
        count: K, the most rows that will come.
    """

    def __init__(self, vocabulary: int, device: torch.device, count: int) -> None:
        at_once = BLOCK_ELEMENTS * torch.get_num_threads() if device.type == "cpu" else TILE_ELEMENTS
        self.rows = max(1, min(min(at_once, TILE_ELEMENTS) // vocabulary, count))
        self._logits = torch.empty(self.rows, vocabulary, device=device)
        self._log_p = torch.empty_like(self._logits)

    def blocks(self, logits: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
        """Rows of each block, and their log softmax(logits / temperature), float32; it may be overwritten."""
        for start in range(0, len(logits), self.rows):
            rows = slice(start, min(start + self.rows, len(logits)))
            block, log_p = self._logits[: rows.stop - start], self._log_p[: rows.stop - start]
            block.copy_(logits[rows])
            if temperature != 1.0:
                block.div_(temperature)
            yield rows, torch.log_softmax(block, -1, out=log_p)  # type: ignore[call-overload]


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
        at_once: bool,
    ) -> tuple[Tensor, Tensor]:
        logprobs_K = torch.empty(len(targets_K), dtype=torch.float32, device=hidden_KH.device)
        entropies_K = torch.zeros_like(logprobs_K)
        slopes_KH = torch.empty_like(hidden_KH) if at_once else None
        tile = _Tile(len(weight_VH), hidden_KH.device, len(hidden_KH))
        for rows in tiles(len(targets_K), len(weight_VH)):
            logits = linear(hidden_KH[rows], weight_VH, bias_V)
            targets, logprobs, entropies = targets_K[rows, None], logprobs_K[rows], entropies_K[rows]
            for block, log_p in tile.blocks(logits, temperature):
                logprobs[block] = log_p.gather(-1, targets[block]).squeeze(-1)
                if with_entropy:
                    entropies[block] = -(log_p.exp() * log_p).sum(-1)
                if at_once:  # p - 1[target] takes the place of the logits
                    slope = log_p.exp_()
                    slope.scatter_add_(-1, targets[block], slope.new_full((len(slope), 1), -1.0))
                    logits[block] = slope
            if slopes_KH is not None:
                slopes_KH[rows] = input_gradient(logits, weight_VH).to(hidden_KH.dtype)
        ctx.save_for_backward(hidden_KH, weight_VH, bias_V, targets_K, slopes_KH)
        ctx.temperature, ctx.with_entropy = temperature, with_entropy
        ctx.set_materialize_grads(False)
        return logprobs_K, entropies_K

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_logprobs_K, grad_entropies_K = gradients
        hidden_KH, weight_VH, bias_V, targets_K, slopes_KH = ctx.saved_tensors
        if not ctx.with_entropy:
            grad_entropies_K = None
        if slopes_KH is not None and grad_entropies_K is None:
            factor_K = None if grad_logprobs_K is None else grad_logprobs_K.div(-ctx.temperature)
            grad = None if factor_K is None else (slopes_KH * factor_K[:, None]).to(hidden_KH.dtype)
            return grad, None, None, None, None, None, None
        sums = LinearGradients(hidden_KH, weight_VH, bias_V, ctx.needs_input_grad)
        tile = _Tile(len(weight_VH), hidden_KH.device, len(hidden_KH))
        for rows in tiles(len(targets_K), len(weight_VH)):
            logits = linear(hidden_KH[rows], weight_VH, bias_V)
            for block, log_p in tile.blocks(logits, ctx.temperature):
                places = slice(rows.start + block.start, rows.start + block.stop)
                logits[block] = _slope(log_p, targets_K[places], grad_logprobs_K, grad_entropies_K, places).div_(
                    ctx.temperature
                )
            sums.add(rows, logits)
        return *sums.result(), None, None, None, None


def _slope(
    log_p: Tensor, targets: Tensor, grad_logprobs_K: Tensor | None, grad_entropies_K: Tensor | None, places: slice
) -> Tensor:
    """Gradient of a block's logits / temperature, float32 [rows, V]; `log_p` is overwritten."""
    p = log_p.exp()
    grad = torch.zeros_like(p)
    if grad_logprobs_K is not None:
        grad -= p * grad_logprobs_K[places, None]
        grad.scatter_add_(-1, targets[:, None], grad_logprobs_K[places, None])
    if grad_entropies_K is not None:
        entropies = -(p * log_p).sum(-1, keepdim=True)
        grad -= p.mul_(log_p.add_(entropies)).mul_(grad_entropies_K[places, None])
    return grad
