"""Proximal policy optimisation: the clipped policy loss, the clipped value loss, and the KL as a loss term."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.losses.surrogate import approximate_kl, clipped_surrogate, log_ratios_of, ratio_metrics
from accord.ops.kl import kl_per_token
from accord.ops.masking import masked_sum


def ppo_policy(
    *,
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    mask_T: Tensor,
    tokens: Tensor,
    clip: float,
    dual_clip: float | None = None,
    weights_T: Tensor | None = None,
    entropies_T: Tensor | None = None,
    entropy_coef: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, equation 7) minus an entropy bonus (equation 9).

    ratio = exp(log p - log p_old)
    loss = sum_t w_t max(-A_t ratio_t, -A_t clip(ratio_t, 1 - clip, 1 + clip)) / tokens - entropy_coef sum_t H_t / tokens

    Args:
        logprobs_T: log-probability of each token now, float32 [T].
        old_logprobs_T: the same before the iteration's first step.
        advantages_T: float32 [T].
        mask_T: true for response tokens, bool [T].
        tokens: number of response tokens of the whole step, scalar.
        clip: half-width of the ratio's free range.
        dual_clip: for negative advantages the loss of a token is at most this times |A|; see `clipped_surrogate`.
        weights_T: weight of each token's surrogate, float32 [T]; 1 if not given. See `ops.importance`.
        entropies_T: entropy of each token's distribution (nats), float32 [T].
        entropy_coef: weight of the bonus.

    Returns:
        The loss (scalar) and `ppo/policy/*`, `ppo/loss/policy`, `objective/entropy`.
    """
    log_ratio_T = log_ratios_of(logprobs=logprobs_T, old_logprobs=old_logprobs_T, mask=mask_T)
    losses_T, held_T = clipped_surrogate(
        log_ratios=log_ratio_T,
        advantages=advantages_T.masked_fill(~mask_T, 0.0),
        clip_low=clip,
        clip_high=clip,
        dual_clip=dual_clip,
    )
    if weights_T is not None:
        losses_T = losses_T * weights_T.masked_fill(~mask_T, 0.0)
    surrogate = masked_sum(losses_T, mask_T) / tokens
    metrics = {
        "ppo/loss/policy": surrogate,
        **ratio_metrics(log_ratios=log_ratio_T, held=held_T, mask=mask_T, count=tokens),
        **approximate_kl(log_ratios_T=log_ratio_T, mask_T=mask_T, tokens=tokens),
    }
    loss = surrogate
    if entropies_T is not None:
        entropy = masked_sum(entropies_T, mask_T) / tokens
        metrics["objective/entropy"] = entropy
        if entropy_coef:  # 0 x entropy would have the output layer computed a second time in backward
            loss = loss - entropy_coef * entropy
    return loss, {name: value.detach() for name, value in metrics.items()}


def ppo_value(
    *,
    values_T: Tensor,
    old_values_T: Tensor,
    returns_T: Tensor,
    mask_T: Tensor,
    tokens: Tensor,
    value_clip: float | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of the values, clipped around the old ones (PPO's reference code; Huang et al. 2024, arXiv:2403.17031).

    v_clipped = V_old + clip(V - V_old, -value_clip, value_clip)
    loss = 1/2 sum_t max((V_t - R_t)^2, (v_clipped_t - R_t)^2) / tokens

    Args:
        values_T: values now, float32 [T].
        old_values_T: values before the iteration's first step, float32 [T].
        returns_T: regression targets, float32 [T].
        mask_T: true for response tokens, bool [T].
        tokens: number of response tokens of the whole step, scalar.
        value_clip: in units of the value; `None` turns clipping off.

    Returns:
        The loss (scalar) and `ppo/loss/value`, `ppo/val/*`.
    """
    values_T = values_T.masked_fill(~mask_T, 0.0)
    errors_T = (values_T - returns_T).square()
    worst_T = errors_T
    if value_clip is not None:
        near_T = old_values_T + (values_T - old_values_T).clamp(-value_clip, value_clip)
        worst_T = torch.maximum(errors_T, (near_T - returns_T).square())
    loss = 0.5 * masked_sum(worst_T, mask_T) / tokens
    metrics = {
        "ppo/loss/value": loss,
        "ppo/val/clipfrac": masked_sum((worst_T > errors_T).float(), mask_T) / tokens,
        "ppo/val/mean": masked_sum(values_T, mask_T) / tokens,
    }
    return loss, {name: value.detach() for name, value in metrics.items()}


def kl_penalty(
    *,
    logprobs_T: Tensor,
    ref_logprobs_T: Tensor,
    mask_T: Tensor,
    tokens: Tensor,
    estimator: str,
    coef: float,
    weights_T: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The KL to the reference as a loss term: coef sum_t w_t kl_t (for the estimators see `ops.kl.kl_per_token`).

    Args:
        logprobs_T, ref_logprobs_T: log-probability of each token under policy and reference, float32 [T].
        mask_T: true for response tokens, bool [T].
        tokens: number of response tokens of the whole step, scalar.
        estimator: one of `kl_per_token`.
        coef: weight of the term.
        weights_T: weight of each token, float32 [T]; 1 / tokens if not given. GRPO's own mean takes the KL in, too
            (arXiv:2402.03300, equation 3).
    """
    kl_T = kl_per_token(logprobs_T.masked_fill(~mask_T, 0.0), ref_logprobs_T, estimator)
    mean = masked_sum(kl_T, mask_T) / tokens if weights_T is None else masked_sum(kl_T * weights_T, mask_T)
    loss = coef * mean
    return loss, {"ppo/loss/kl": loss.detach()}
