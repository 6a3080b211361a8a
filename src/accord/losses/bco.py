"""Binary classifier optimisation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from accord.losses.labelled import label_metrics, label_weights


def bco(
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
    """Thumbs up and down as two classes, told apart by a classifier whose logit is the policy's own reward.

    r = beta (log pi(y|x) - log ref(y|x))
    loss = -sum_n w_n log sigmoid(+-(r_n - delta)) / sequences,  + for a thumb up, - for a thumb down

    Jung et al. 2024 (arXiv:2404.04656): binary cross-entropy bounds DPO's loss from above, and the shift delta narrows the gap.

    Args:
        logprobs_N: log-probability (nats) of each response under the policy, summed over its tokens, float32 [N].
        ref_logprobs_N: the same under the reference, float32 [N].
        labels_N: true for a thumb up, bool [N].
        baselines_N: delta of each sequence's step, float32 [N]; no gradient goes through it.
        beta: weight of the log-ratio.
        sequences: sequences of the whole step, scalar.
        desirable: those of them with a thumb up, scalar.
        desirable_weight, undesirable_weight: w of a thumb up, of a thumb down.

    Returns:
        The loss (scalar), `bco/*`, `rewards/*` and `logps/*`.
    """
    rewards_N = beta * (logprobs_N - ref_logprobs_N)
    logits_N = rewards_N - baselines_N.detach()
    weights_N = label_weights(
        labels_N=labels_N, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight
    )
    loss = -(weights_N * functional.logsigmoid(torch.where(labels_N, logits_N, -logits_N))).sum() / sequences
    metrics = label_metrics(
        rewards_N=rewards_N,
        baselines_N=baselines_N,
        logprobs_N=logprobs_N,
        labels_N=labels_N,
        desirable=desirable,
        sequences=sequences,
        prefix="bco",
    )
    return loss, {"bco/loss": loss.detach(), **metrics}
