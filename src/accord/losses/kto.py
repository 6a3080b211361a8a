"""Kahneman-Tversky optimisation."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.losses.labelled import label_metrics, label_weights


def kto(
    *,
    logprobs_N: Tensor,
    ref_logprobs_N: Tensor,
    labels_N: Tensor,
    baselines_N: Tensor,
    beta: float,
    sequences: Tensor,
    desirable: Tensor,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Thumbs up and down, valued as people value gains and losses: relative to a point of reference, with falling gains.

    r = beta (log pi(y|x) - log ref(y|x)),  b = beta z
    loss = sum_n w_n (1 - v_n) / sequences,  v = sigmoid(r - b) for a thumb up, sigmoid(b - r) for a thumb down

    Ethayarajh et al. 2024 (arXiv:2402.01306, equation 8; there the weight stands in the value, lambda - lambda v, which is the
    same). With b = 0 it is the unpaired APO-zero of D'Oosterlinck et al. 2024 (arXiv:2408.06266).

    Args:
        logprobs_N: log-probability (nats) of each response under the policy, summed over its tokens, float32 [N].
        ref_logprobs_N: the same under the reference, float32 [N].
        labels_N: true for a thumb up, bool [N].
        baselines_N: b of each sequence's step, float32 [N]; no gradient goes through it.
        beta: weight of the log-ratio.
        sequences: sequences of the whole step, scalar.
        desirable: those of them with a thumb up, scalar.
        desirable_weight, undesirable_weight: w of a thumb up, of a thumb down.

    Returns:
        The loss (scalar), `kto/*`, `rewards/*` and `logps/*`.
    """
    rewards_N = beta * (logprobs_N - ref_logprobs_N)
    gains_N = rewards_N - baselines_N.detach()
    weights_N = label_weights(
        labels_N=labels_N, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight
    )
    loss = (weights_N * torch.sigmoid(torch.where(labels_N, -gains_N, gains_N))).sum() / sequences
    metrics = label_metrics(
        rewards_N=rewards_N,
        baselines_N=baselines_N,
        logprobs_N=logprobs_N,
        labels_N=labels_N,
        desirable=desirable,
        sequences=sequences,
        prefix="kto",
    )
    return loss, {"kto/loss": loss.detach(), **metrics}
