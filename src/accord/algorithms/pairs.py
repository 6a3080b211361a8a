"""What the algorithms on pairs share: the batch, and the log-probabilities of both answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from accord.batch import TokenBatch
from accord.data import EncodedPair
from accord.ops.masking import sum_per_sequence, targets_per_sequence


class Answers(TypedDict):
    """Both answers of each pair, as the losses of pairs take them."""

    chosen_P: Tensor
    """Log-probability (nats) of all target tokens of the chosen answer, float32 [P]."""
    rejected_P: Tensor
    chosen_lengths_P: Tensor
    """Number of target tokens of the chosen answer, float32 [P]."""
    rejected_lengths_P: Tensor


def pair_batch(items: Sequence[EncodedPair]) -> TokenBatch:
    """Chosen and rejected answer of each pair, one behind the other, with margins if any pair has one."""
    sequences = [sequence for pair in items for sequence in (pair.chosen, pair.rejected)]
    margins = [pair.margin or 0.0 for pair in items for _ in range(2)]
    with_margin = any(pair.margin is not None for pair in items)
    return TokenBatch.from_sequences(
        [sequence.input_ids for sequence in sequences],
        [sequence.target_mask for sequence in sequences],
        pair_N=torch.arange(len(items)).repeat_interleave(2),
        margins_N=torch.tensor(margins) if with_margin else None,
    )


def answers(logprobs_T: Tensor | None, batch: TokenBatch) -> Answers:
    """Both answers' log-probabilities and lengths, from those of the tokens."""
    assert logprobs_T is not None
    logprobs_N, lengths_N = sum_per_sequence(logprobs_T, batch), targets_per_sequence(batch)
    return Answers(
        chosen_P=logprobs_N[0::2],
        rejected_P=logprobs_N[1::2],
        chosen_lengths_P=lengths_N[0::2],
        rejected_lengths_P=lengths_N[1::2],
    )
