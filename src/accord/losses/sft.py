"""Supervised fine-tuning."""

from __future__ import annotations

from torch import Tensor

from accord.ops.masking import masked_sum


def sft(
    *, logprobs_T: Tensor, mask_T: Tensor, tokens: Tensor, weights_T: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the target tokens: -sum_t w_t log p(token_t) / tokens.

    Args:
        logprobs_T: log-probability (nats) of each token, float32 [T].
        mask_T: true for target tokens, bool [T].
        tokens: number of target tokens (or sum of weights) of the whole step, scalar.
        weights_T: weight of each token, float32 [T]; 1 if not given.

    Returns:
        The loss (scalar) and `sft/loss`.
    """
    logprobs_T = logprobs_T.masked_fill(~mask_T, 0.0)
    weighted_T = logprobs_T if weights_T is None else logprobs_T * weights_T
    loss = -masked_sum(weighted_T, mask_T) / tokens
    return loss, {"sft/loss": loss.detach()}
