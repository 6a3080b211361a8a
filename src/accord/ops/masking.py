"""Sums over masked tokens. Every ratio has an explicit denominator; there is no mean here."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.batch import TokenBatch


def masked_sum(values_T: Tensor, mask_T: Tensor) -> Tensor:
    """Sum of the values where the mask is true: a scalar. Masked-out NaN and infinity do not count."""
    return values_T.masked_fill(~mask_T, 0.0).sum()


def sum_per_sequence(values_T: Tensor, batch: TokenBatch) -> Tensor:
    """Sum over the target tokens of each sequence: float32 [N]."""
    result_N = torch.zeros(batch.sequences, dtype=torch.float32, device=values_T.device)
    return result_N.index_add(0, batch.sequence_T, values_T.float().masked_fill(~batch.target_mask_T, 0.0))


def targets_per_sequence(batch: TokenBatch) -> Tensor:
    """Number of target tokens of each sequence: float32 [N]."""
    return sum_per_sequence(torch.ones_like(batch.target_mask_T, dtype=torch.float32), batch)


def last_targets(batch: TokenBatch) -> Tensor:
    """Index in T of the last target token of each sequence: int64 [N].

    Raises:
        ValueError: a sequence has no target token.
    """
    positions_T = torch.arange(batch.tokens, device=batch.input_ids_T.device).masked_fill(~batch.target_mask_T, -1)
    last_N = torch.full((batch.sequences,), -1, dtype=torch.long, device=positions_T.device)
    last_N = last_N.scatter_reduce(0, batch.sequence_T, positions_T, reduce="amax")
    without = (last_N < 0).nonzero().flatten().tolist()
    if without:
        raise ValueError(f"sequence {without[0]} has no target token")
    return last_N
