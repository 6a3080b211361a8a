"""Drawing tokens from logits."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.rollout.protocol import Sampling


def sample_tokens(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverting the distribution function at a uniform number.

    One number a token keeps each row's draws its own: the same seed gives the same response in any batch.

    Args:
        logits_BV: of the next token, any float type.
        uniforms_B: float32 in [0, 1).
        sampling: temperature 0 takes the likeliest token.

    Returns:
        Token ids, int64 [B], and their log-probabilities under the distribution drawn from, float32 [B]. At temperature 0
        that is the untruncated distribution at temperature 1, since the other would say 0 for every token.
    """
    logits_BV = logits_BV.float()
    if sampling.temperature == 0:
        tokens_B = logits_BV.argmax(-1)
        return tokens_B, torch.log_softmax(logits_BV, -1).gather(-1, tokens_B[:, None]).squeeze(-1)
    if sampling.temperature != 1.0:
        logits_BV = logits_BV / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        smallest_kept = logits_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_kept, -torch.inf)
    if sampling.top_p < 1.0:
        logits_BV = _keep_nucleus(logits_BV, sampling.top_p)
    logprobs_BV = torch.log_softmax(logits_BV, -1)
    cumulative_BV = logprobs_BV.exp().cumsum(-1)
    # Scaling by the last entry, and not by 1, keeps the draw inside the vocabulary when rounding ends below 1; strictly
    # greater means that a token of probability 0 is never drawn.
    thresholds_B1 = uniforms_B[:, None] * cumulative_BV[:, -1:]
    tokens_B = (
        torch.searchsorted(cumulative_BV, thresholds_B1, right=True).squeeze(-1).clamp(max=logits_BV.shape[-1] - 1)
    )
    return tokens_B, logprobs_BV.gather(-1, tokens_B[:, None]).squeeze(-1)


def _keep_nucleus(logits_BV: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches top_p (Holtzman et al. 2020, arXiv:1904.09751)."""
    ordered, order = logits_BV.sort(dim=-1, descending=True)
    probabilities = torch.softmax(ordered, -1)
    before = probabilities.cumsum(-1) - probabilities
    ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(logits_BV).scatter_(-1, order, ordered)
