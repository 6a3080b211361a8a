"""REINFORCE leave-one-out."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.losses.ppo import MAX_LOG_RATIO


def rloo(
    *, logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, sequences: Tensor, clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """A whole response is one action: the clipped surrogate of its probability (Ahmadian et al. 2024, arXiv:2402.14740; clipped
    as in TRL, so that a batch can be used for several steps).

    ratio_n = exp(sum_t log p - sum_t log p_old);  loss = sum_n max(-A_n ratio_n, -A_n clip(ratio_n)) / sequences

    At the first step the gradient is that of REINFORCE, -sum_n A_n grad sum_t log p / sequences.

    Args:
        logprobs_N: log-probability of each response now (the sum over its tokens), float32 [N].
        old_logprobs_N: the same before the iteration's first step.
        advantages_N: float32 [N].
        sequences: number of responses of the whole step, scalar.
        clip: half-width of the ratio's free range.

    Returns:
        The loss (scalar) and `ppo/policy/*`, `ppo/loss/policy`.
    """
    log_ratio_N = (logprobs_N - old_logprobs_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_N = log_ratio_N.exp()
    plain_N, clipped_N = -advantages_N * ratio_N, -advantages_N * ratio_N.clamp(1.0 - clip, 1.0 + clip)
    loss = torch.maximum(plain_N, clipped_N).sum() / sequences
    metrics = {
        "ppo/loss/policy": loss,
        "ppo/policy/clipfrac": (clipped_N > plain_N).float().sum() / sequences,
        "ppo/policy/approxkl": (torch.expm1(log_ratio_N) - log_ratio_N).sum() / sequences,
        "ppo/policy/ratio_mean": ratio_N.sum() / sequences,
        "ppo/policy/ratio_max": ratio_N.max(),
    }
    return loss, {name: value.detach() for name, value in metrics.items()}
