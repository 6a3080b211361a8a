"""Drawing tokens from logits."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.rollout.protocol import Sampling

TILE = 2**20
"""Logits that are worked on at once: what fits into a processor's cache, and no second copy of all of them."""
BLOCK = 256
"""Neighbouring tokens whose probabilities are summed first."""


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
    rows = max(1, TILE // logits_BV.shape[-1])
    parts = [_sample(*tile, sampling) for tile in zip(logits_BV.split(rows), uniforms_B.split(rows), strict=True)]
    return torch.cat([tokens_B for tokens_B, _ in parts]), torch.cat([logprobs_B for _, logprobs_B in parts])


def _sample(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """`sample_tokens` for some of the rows."""
    if sampling.temperature == 0:
        tokens_B = logits_BV.argmax(-1)
        return tokens_B, _logprobs(torch.softmax(logits_BV, -1, dtype=torch.float32), tokens_B)
    if sampling.temperature != 1.0:
        logits_BV = logits_BV.float() / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        # By place: bfloat16 logits are often equal, and no more than k may stay.
        kept = logits_BV.topk(sampling.top_k, dim=-1)
        logits_BV = torch.full_like(logits_BV, -torch.inf).scatter_(-1, kept.indices, kept.values)
    if sampling.top_p < 1.0:
        logits_BV = _keep_nucleus(logits_BV, sampling.top_p)
    probabilities_BV = torch.softmax(logits_BV, -1, dtype=torch.float32)
    tokens_B = _invert(probabilities_BV, uniforms_B)
    return tokens_B, _logprobs(probabilities_BV, tokens_B)


def _logprobs(probabilities_BV: Tensor, tokens_B: Tensor) -> Tensor:
    return probabilities_BV.gather(-1, tokens_B[:, None]).squeeze(-1).log()


def _invert(probabilities_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds a uniform share of the whole, int64 [B].

    Sums of blocks first, then the cumulative sum of one block alone: the vocabulary is read twice and nothing of its size
    written. Scaling by the last sum, and not by 1, keeps the draw inside the vocabulary when rounding ends below 1.
    """
    vocabulary = probabilities_BV.shape[-1]
    whole = vocabulary // BLOCK * BLOCK
    sums_BS = torch.cat(
        [
            probabilities_BV[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1),
            probabilities_BV[:, whole:].sum(-1, keepdim=True),
        ],
        dim=-1,
    )
    ends_BS = sums_BS.cumsum(-1)
    target_B1 = uniforms_B[:, None] * ends_BS[:, -1:]
    block_B1 = _first_beyond(ends_BS, sums_BS, target_B1)
    places_BK = block_B1 * BLOCK + torch.arange(BLOCK, device=block_B1.device)
    inside_BK = probabilities_BV.gather(-1, places_BK.clamp(max=vocabulary - 1))
    inside_BK = inside_BK.masked_fill(places_BK >= vocabulary, 0.0)
    target_B1 = target_B1 - torch.where(block_B1 > 0, ends_BS.gather(-1, (block_B1 - 1).clamp(min=0)), 0.0)
    return (block_B1 * BLOCK + _first_beyond(inside_BK.cumsum(-1), inside_BK, target_B1)).squeeze(-1)


def _first_beyond(ends_BS: Tensor, parts_BS: Tensor, target_B1: Tensor) -> Tensor:
    """Number of the first part whose end lies beyond the target, int64 [B, 1]. Beyond, and not at: a part of probability 0 is
    never drawn. If rounding put the target behind all ends, the last part that is not 0."""
    found_B1 = torch.searchsorted(ends_BS, target_B1, right=True)
    order_S = torch.arange(1, parts_BS.shape[-1] + 1, device=parts_BS.device)
    last_B1 = ((parts_BS > 0) * order_S).argmax(-1, keepdim=True)
    return torch.minimum(found_B1, last_B1)


def _keep_nucleus(logits_BV: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches top_p (Holtzman et al. 2020, arXiv:1904.09751)."""
    ordered, order = logits_BV.float().sort(dim=-1, descending=True)
    probabilities = torch.softmax(ordered, -1)
    before = probabilities.cumsum(-1) - probabilities
    ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(ordered).scatter_(-1, order, ordered)
