"""REINFORCE leave-one-out."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.losses.surrogate import clipped_surrogate, log_ratios_of, ratio_metrics


def rloo(
    *,
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    sequences: Tensor,
    clip: float,
    weights_N: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A whole response is one action: the clipped surrogate of its probability (Ahmadian et al. 2024, arXiv:2402.14740; clipped
    as in TRL, so that a batch can be used for several steps).

    ratio_n = exp(sum_t log p - sum_t log p_old);  loss = sum_n w_n max(-A_n ratio_n, -A_n clip(ratio_n)) / sequences

    At the first step the gradient is that of REINFORCE, -sum_n A_n grad sum_t log p / sequences.

    Args:
        logprobs_N: log-probability of each response now (the sum over its tokens), float32 [N].
        old_logprobs_N: the same before the iteration's first step.
        advantages_N: float32 [N].
        sequences: number of responses of the whole step, scalar.
        clip: half-width of the ratio's free range.
        weights_N: weight of each response, float32 [N]; 1 if not given. See `ops.importance`.

    Returns:
        The loss (scalar), `ppo/loss/policy`, and of `ppo/policy/*` what is told of responses; see `approximate_kl` for the rest.
    """
    log_ratio_N = log_ratios_of(logprobs=logprobs_N, old_logprobs=old_logprobs_N)
    losses_N, held_N = clipped_surrogate(log_ratios=log_ratio_N, advantages=advantages_N, clip_low=clip, clip_high=clip)
    loss = (losses_N if weights_N is None else losses_N * weights_N).sum() / sequences
    all_N = torch.ones_like(held_N)
    metrics = {
        "ppo/loss/policy": loss,
        **ratio_metrics(log_ratios=log_ratio_N, held=held_N, mask=all_N, count=sequences),
    }
    return loss, {name: value.detach() for name, value in metrics.items()}
