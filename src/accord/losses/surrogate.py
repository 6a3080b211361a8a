"""The clipped surrogate that PPO and its kin share: of tokens, or of whole responses."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp(20) is far outside any clip range and far inside float32."""


def clipped_surrogate(
    *, log_ratios: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """Loss of each action, and which are held: no gradient flows through those.

    With ratio = exp(log ratio):
        loss = max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high))   (Schulman et al. 2017, arXiv:1707.06347, equation 7)
        dual clip: for A < 0 at most dual_clip |A|                          (Ye et al. 2019, arXiv:1912.09729, equation 5)

    Args:
        log_ratios: log p - log p_old of each token or response, any shape; see `log_ratios_of`.
        advantages: same shape.
        clip_low, clip_high: half-widths of the ratio's free range.
        dual_clip: above 1, or `None`.
    """
    ratios = log_ratios.exp()
    plain, clipped = -advantages * ratios, -advantages * ratios.clamp(1.0 - clip_low, 1.0 + clip_high)
    losses, held = torch.maximum(plain, clipped), clipped > plain
    if dual_clip is None:
        return losses, held
    limits = -advantages * dual_clip
    beyond = (advantages < 0) & (losses > limits)
    return torch.where(beyond, limits, losses), held | beyond


def log_ratios_of(*, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    """log p - log p_old, kept where exp is finite; 0 off the mask."""
    difference = logprobs - old_logprobs
    if mask is not None:
        difference = difference.masked_fill(~mask, 0.0)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def ratio_metrics(*, log_ratios: Tensor, held: Tensor, mask: Tensor, count: Tensor) -> dict[str, Tensor]:
    """`ppo/policy/*` of actions, tokens or responses: means over those on the mask, of which the whole step has `count`."""

    def mean(values: Tensor) -> Tensor:
        return values.masked_fill(~mask, 0.0).sum() / count

    ratios = log_ratios.exp()
    return {
        "ppo/policy/clipfrac": mean(held.float()),
        "ppo/policy/ratio_mean": mean(ratios),
        "ppo/policy/ratio_max": ratios.masked_fill(~mask, 0.0).max(),
    }


def approximate_kl(*, log_ratios_T: Tensor, mask_T: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """`ppo/policy/approxkl`: mean over tokens of ratio - 1 - log ratio, Schulman's k3 of KL(old || new), in nats, never negative.

    It is of tokens also where the ratio that is clipped is a response's: `kl_stop` has one unit.
    """
    kl_T = torch.expm1(log_ratios_T) - log_ratios_T
    return {"ppo/policy/approxkl": kl_T.masked_fill(~mask_T, 0.0).detach().sum() / tokens}
