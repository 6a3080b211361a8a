"""Weights for tokens that were drawn from another distribution than the one that learns."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.batch import TokenBatch
from accord.ops.masking import sum_per_sequence

MAX_LOG_WEIGHT = 40.0
"""exp(40) is beyond any cap in use, and finite in float32."""


def importance_weights(
    batch: TokenBatch, old_logprobs_T: Tensor, sampler_logprobs_T: Tensor, how: str, cap: float, level: str
) -> tuple[Tensor, Tensor]:
    """Weights that turn an expectation under the sampler into one under the trainer's policy.

        rho_t = exp(log p_old(t) - log p_sampler(t))   level: token;   for level sequence the product over the response
        truncate: w = min(rho, cap)
        mask:     w = rho if 1 / cap <= rho <= cap else 0

    Truncation: Espeholt et al. 2018, arXiv:1802.01561, section 4.1; for language models Yao et al. 2025, "Your efficient RL
    framework secretly brings you off-policy RL training". Masking: IcePop, in Ring-1T, arXiv:2510.18855.

    `old` is the trainer's own, taken at the update, and the sampler's is that of the weights and kernels that sampled. So one
    formula covers both another engine and a policy that lags behind (lag > 0). Sequence weights are unbiased up to the cap;
    token weights leave the state distribution as it was, and vary less.

    Args:
        batch: for the sequences and their targets.
        old_logprobs_T: under the policy that learns, before the iteration's first step, float32 [T].
        sampler_logprobs_T: at which the tokens were drawn, float32 [T].
        how: `truncate` or `mask`.
        cap: above 1.
        level: `token` or `sequence`.

    Returns:
        Weights, and rho before any bound; float32 [T], 0 off the targets. No gradient flows through either.
    """
    difference_T = (old_logprobs_T - sampler_logprobs_T).detach().masked_fill(~batch.target_mask_T, 0.0)
    if level == "sequence":
        difference_T = sum_per_sequence(difference_T, batch)[batch.sequence_T]
    ratio_T = difference_T.clamp(-MAX_LOG_WEIGHT, MAX_LOG_WEIGHT).exp().masked_fill(~batch.target_mask_T, 0.0)
    match how:
        case "truncate":
            return ratio_T.clamp(max=cap), ratio_T
        case "mask":
            return torch.where((ratio_T >= 1.0 / cap) & (ratio_T <= cap), ratio_T, 0.0), ratio_T
    raise ValueError(f"unknown correction {how!r}: truncate, mask")
