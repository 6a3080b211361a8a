"""Generalised Jensen-Shannon divergence between two models' distributions, tile by tile, with its own backward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from accord.ops.logprobs import LinearGradients, tile_logprobs, tiles


def generalised_jsd(
    hidden_KH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    teacher_hidden_KH: Tensor,
    teacher_weight_VH: Tensor,
    teacher_bias_V: Tensor | None,
    *,
    beta: float,
    temperature: float = 1.0,
) -> Tensor:
    """Exact divergence of the student's next-token distribution q from the teacher's p (Agarwal et al. 2023, arXiv:2306.13649,
    section 2: generalised JSD).

        JSD(beta) = beta KL(p || m) + (1 - beta) KL(q || m),   m = beta p + (1 - beta) q
        beta = 0: KL(p || q), the forward KL;   beta = 1: KL(q || p), the reverse KL

    At both ends the formula itself is 0; there the divergences that JSD(beta) / beta and JSD(beta) / (1 - beta) tend to stand
    in, as in the paper. With g = (1 - beta) (log q - log m) (beta = 0: q - p below; beta = 1: g = log q - log p):
    d JSD / d logit_v = q_v (g_v - sum_u q_u g_u) / temperature.

    Args:
        hidden_KH: the student's hidden state before each target token, any float type. Gradients flow to it, and to the output
            layer.
        weight_VH, bias_V: the student's output layer.
        teacher_hidden_KH, teacher_weight_VH, teacher_bias_V: the same of the teacher, whose H may differ; no gradient.
        beta: in [0, 1].
        temperature: of both distributions.

    Returns:
        In nats, float32 [K].

    Raises:
        ValueError: the two vocabularies differ in size.
    """
    if len(weight_VH) != len(teacher_weight_VH):
        raise ValueError(f"vocabularies of {len(weight_VH)} and {len(teacher_weight_VH)} tokens cannot be compared")
    result: Tensor = _GeneralisedJSD.apply(  # type: ignore[no-untyped-call]
        hidden_KH, weight_VH, bias_V, teacher_hidden_KH, teacher_weight_VH, teacher_bias_V, beta, temperature
    )
    return result


def _log_mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


class _GeneralisedJSD(torch.autograd.Function):
    """Only one tile of logits of each model exists at a time; backward computes them again."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        hidden_KH, weight_VH, bias_V, other_KH, other_VH, other_V, beta, temperature = arguments
        result_K = torch.empty(len(hidden_KH), dtype=torch.float32, device=hidden_KH.device)
        for rows in tiles(len(hidden_KH), len(weight_VH)):
            log_q = tile_logprobs(hidden_KH[rows], weight_VH, bias_V, temperature)
            log_p = tile_logprobs(other_KH[rows], other_VH, other_V, temperature)
            if beta == 0.0:
                result_K[rows] = _kl(log_p, log_q)
            elif beta == 1.0:
                result_K[rows] = _kl(log_q, log_p)
            else:
                log_m = _log_mixture(log_p, log_q, beta)
                result_K[rows] = beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)
        ctx.save_for_backward(hidden_KH, weight_VH, bias_V, other_KH, other_VH, other_V)
        ctx.beta, ctx.temperature = beta, temperature
        return result_K

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad_K,) = gradients
        hidden_KH, weight_VH, bias_V, other_KH, other_VH, other_V = ctx.saved_tensors
        sums = LinearGradients(hidden_KH, weight_VH, bias_V, ctx.needs_input_grad)
        for rows in tiles(len(hidden_KH), len(weight_VH)):
            log_q = tile_logprobs(hidden_KH[rows], weight_VH, bias_V, ctx.temperature)
            log_p = tile_logprobs(other_KH[rows], other_VH, other_V, ctx.temperature)
            q = log_q.exp()
            if ctx.beta == 0.0:
                grad = q - log_p.exp()
            else:
                log_m = log_p if ctx.beta == 1.0 else _log_mixture(log_p, log_q, ctx.beta)
                pull = (log_q - log_m) * (1.0 if ctx.beta == 1.0 else 1.0 - ctx.beta)
                grad = q * (pull - (q * pull).sum(-1, keepdim=True))
            sums.add(rows, grad * (grad_K[rows, None] / ctx.temperature))
        return *sums.result(), None, None, None, None, None
