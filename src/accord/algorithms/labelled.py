"""What the algorithms share that learn from thumbs up and down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from accord.algorithms.base import Denominators
from accord.batch import TokenBatch
from accord.data import EncodedLabelled, TokenSequence
from accord.model.scorer import Scorer
from accord.ops.masking import sum_per_sequence


def labelled_batch(rows: Sequence[EncodedLabelled]) -> TokenBatch:
    """The rows end to end, with their labels."""
    return sequence_batch([row.sequence for row in rows]).with_streams(labels_N=torch.tensor([r.label for r in rows]))


def sequence_batch(sequences: Sequence[TokenSequence]) -> TokenBatch:
    """Token sequences end to end."""
    return TokenBatch.from_sequences([s.input_ids for s in sequences], [s.target_mask for s in sequences])


def log_ratios(batch: TokenBatch, scorer: Scorer) -> tuple[Tensor, Tensor]:
    """Two frozen passes: (log policy - log reference, log reference) of each response, in nats, both float32 [N]."""
    streams = scorer.score(batch, ("old_logprobs_T", "ref_logprobs_T"))
    reference_T = streams["ref_logprobs_T"]
    ratios_N = sum_per_sequence(streams["old_logprobs_T"] - reference_T, batch)
    return ratios_N, sum_per_sequence(reference_T, batch)


def without_absent(metrics: Mapping[str, Tensor], denominators: Denominators) -> dict[str, Tensor]:
    """The metrics without means over a label that the step does not have: they would be 0 and mean nothing."""
    absent: set[str] = set()
    if denominators.desirable == 0:
        absent |= {"rewards/chosen", "rewards/margins", "logps/chosen"}
    if denominators.desirable == denominators.sequences:
        absent |= {"rewards/rejected", "rewards/margins", "logps/rejected"}
    return {name: value for name, value in metrics.items() if name not in absent}
