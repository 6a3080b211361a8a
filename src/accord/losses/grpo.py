"""Group relative policy optimisation and its variants, as options of one loss."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.losses.surrogate import approximate_kl, clipped_surrogate, log_ratios_of, ratio_metrics
from accord.ops.masking import masked_sum


def grpo(
    *,
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    mask_T: Tensor,
    weights_T: Tensor,
    tokens: Tensor,
    clip_low: float,
    clip_high: float,
    sequence_T: Tensor | None = None,
    dual_clip: float | None = None,
    cispo: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate with a weight for each token.

    ratio_t = exp(log p - log p_old), or for GSPO (`sequence_T` given) the length-normalised ratio of the response, whose gradient
    still reaches each token: exp(mean_t(log p - log p_old)), as sg[s_n] p_t / sg[p_t] (arXiv:2507.18071, equation 13).
    loss = sum_t w_t max(-A_t ratio_t, -A_t clip(ratio_t, 1 - clip_low, 1 + clip_high)), see `clipped_surrogate`
    CISPO: sum_t w_t sg[min(ratio_t, 1 + clip_high)] (-A_t) log p_t (arXiv:2506.13585; no lower bound, as there).

    Args:
        logprobs_T: log-probability of each token now, float32 [T].
        old_logprobs_T: the same before the iteration's first step.
        advantages_T: float32 [T].
        mask_T: true for response tokens, bool [T].
        weights_T: 1 / denominator of each token, float32 [T]; see `token_weights`. Times its importance, if it has one.
        tokens: number of response tokens of the whole step, scalar; for the metrics.
        clip_low, clip_high: half-widths of the ratio's free range.
        sequence_T: index of each token's sequence, int64 [T], for the ratio of whole responses.
        dual_clip: bound for negative advantages; not for CISPO, whose weight is bounded already.
        cispo: weight by the clipped ratio instead of clipping the surrogate.

    Returns:
        The loss (scalar) and `ppo/policy/*`, `ppo/loss/policy`; the metrics are means over tokens.
    """
    log_ratio_T = log_ratios_of(logprobs=logprobs_T, old_logprobs=old_logprobs_T, mask=mask_T)
    moved = approximate_kl(log_ratios_T=log_ratio_T, mask_T=mask_T, tokens=tokens)
    if sequence_T is not None:
        log_ratio_T = _of_sequence(log_ratio_T, mask_T, sequence_T)
    advantages_T = advantages_T.masked_fill(~mask_T, 0.0)
    if cispo:
        ratio_T = log_ratio_T.exp().detach()
        losses_T = -advantages_T * ratio_T.clamp(max=1.0 + clip_high) * logprobs_T.masked_fill(~mask_T, 0.0)
        held_T = ratio_T > 1.0 + clip_high
    else:
        losses_T, held_T = clipped_surrogate(
            log_ratios=log_ratio_T, advantages=advantages_T, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
        )
    loss = masked_sum(losses_T * weights_T.masked_fill(~mask_T, 0.0), mask_T)
    ratios = ratio_metrics(log_ratios=log_ratio_T, held=held_T, mask=mask_T, count=tokens)
    metrics = {"ppo/loss/policy": loss, **ratios, **moved}
    return loss, {name: value.detach() for name, value in metrics.items()}


def _of_sequence(log_ratio_T: Tensor, mask_T: Tensor, sequence_T: Tensor) -> Tensor:
    """Mean log-ratio of each token's response, with the gradient of the token's own log-ratio."""
    sequences = int(sequence_T[-1]) + 1
    sums_N = torch.zeros(sequences, dtype=log_ratio_T.dtype, device=log_ratio_T.device)
    totals_N = sums_N.index_add(0, sequence_T, log_ratio_T.detach())
    counts_N = sums_N.index_add(0, sequence_T, mask_T.to(log_ratio_T.dtype)).clamp(min=1)
    means_T = (totals_N / counts_N)[sequence_T]
    return (means_T + log_ratio_T - log_ratio_T.detach()).masked_fill(~mask_T, 0.0)


def token_weights(
    *, mask_T: Tensor, sequence_T: Tensor, aggregate: str, tokens: Tensor, sequences: Tensor, longest: int
) -> Tensor:
    """Weight of each token in the loss, by how token losses are averaged; float32 [T], 0 off the mask.

    sequence: 1 / (length of its response x sequences), DeepSeekMath; token: 1 / tokens, DAPO; constant:
    1 / (longest x sequences),
    Dr. GRPO.

    Args:
        mask_T, sequence_T: targets, and the index of each token's sequence.
        aggregate: one of the three.
        tokens, sequences: counts of the whole step over all ranks.
        longest: greatest possible length of a response.
    """
    match aggregate:
        case "token":
            return mask_T.float() / tokens
        case "constant":
            return mask_T.float() / (longest * sequences)
        case "sequence":
            count = int(sequence_T[-1]) + 1
            lengths_N = torch.zeros(count, device=mask_T.device).index_add(0, sequence_T, mask_T.float())
            return mask_T.float() / (lengths_N[sequence_T].clamp(min=1) * sequences)
    raise ValueError(f"unknown aggregate {aggregate!r}: sequence, token, constant")
