"""What the losses on thumbs up and down report alike."""

from __future__ import annotations

import torch
from torch import Tensor


def label_weights(*, labels_N: Tensor, desirable_weight: float, undesirable_weight: float) -> Tensor:
    """The weight of each sequence by its label: float32 [N]."""
    up, down = torch.tensor([desirable_weight, undesirable_weight], device=labels_N.device).unbind()
    return torch.where(labels_N, up, down)


def label_metrics(
    *,
    rewards_N: Tensor,
    baselines_N: Tensor,
    logprobs_N: Tensor,
    labels_N: Tensor,
    desirable: Tensor,
    sequences: Tensor,
    prefix: str,
) -> dict[str, Tensor]:
    """Means over the sequences of each label, additive over micro-batches.

    Args:
        rewards_N: beta (log policy - log reference) of each sequence, float32 [N].
        baselines_N: the reward that counts as neither good nor bad, float32 [N].
        logprobs_N: log-probability (nats) of each response, float32 [N].
        labels_N: true for a thumb up, bool [N].
        desirable, sequences: how many of them, and of all, the whole step has, scalars.
        prefix: of the accuracy's name.

    Returns:
        `rewards/*` and `logps/*`, and the share of sequences on the right side of the baseline, where a tie counts half. The mean
        of a label that the step does not have is 0, which says nothing.
    """
    undesirable = sequences - desirable

    def mean(values_N: Tensor, mask_N: Tensor, count: Tensor) -> Tensor:
        return values_N.detach().masked_fill(~mask_N, 0.0).sum() / count.clamp(min=1)

    chosen, rejected = mean(rewards_N, labels_N, desirable), mean(rewards_N, ~labels_N, undesirable)
    above_N = (rewards_N > baselines_N).float() + 0.5 * (rewards_N == baselines_N).float()
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "logps/chosen": mean(logprobs_N, labels_N, desirable),
        "logps/rejected": mean(logprobs_N, ~labels_N, undesirable),
        f"{prefix}/accuracy": torch.where(labels_N, above_N, 1 - above_N).sum() / sequences,
    }
