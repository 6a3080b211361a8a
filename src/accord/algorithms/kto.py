"""Kahneman-Tversky optimisation: thumbs up and down in, gains and losses out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accord.algorithms.base import Denominators, Metrics, RoleUpdate, Stateless
from accord.algorithms.labelled import labelled_batch, log_ratios, sequence_batch, without_absent
from accord.batch import TokenBatch
from accord.config import KTOConfig
from accord.data import EncodedLabelled
from accord.losses import kto
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.masking import sum_per_sequence
from accord.ops.statistics import SumOverRanks, moments, one_rank


class KTO(Stateless):
    """Makes liked answers likelier and disliked ones less likely, relative to how far the policy has moved as a whole.

    Args:
        config: the knobs.
        sum_over_ranks: for the KL term, which is of the whole step.
    """

    uses_dropout = False
    temperature = 1.0

    def __init__(self, config: KTOConfig, sum_over_ranks: SumOverRanks = one_rank) -> None:
        self.config, self.sum_over_ranks = config, sum_over_ranks

    def prepare(self, items: Sequence[EncodedLabelled], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """Rows end to end, with the reference's log-probabilities and the step's point of reference."""
        batch = labelled_batch(items)
        reference_T = scorer.score(batch, ("ref_logprobs_T",))["ref_logprobs_T"]
        kl = self._kl(items, scorer) if self.config.kl else 0.0
        batch = batch.with_streams(
            ref_logprobs_N=sum_per_sequence(reference_T, batch),
            baselines_N=torch.full((batch.sequences,), self.config.beta * kl),
        )
        return batch, {"objective/kl": kl} if self.config.kl else {}

    def _kl(self, items: Sequence[EncodedLabelled], scorer: Scorer) -> float:
        """z = max(0, mean of log policy - log reference over prompts with other rows' answers), nats; the mean is over the
        whole step and all ranks, at the weights before the step (section 4.1 of the paper)."""
        sequences = [item.mismatched for item in items if item.mismatched is not None]
        if len(sequences) != len(items):
            raise ValueError("KTO's KL term needs rows with another row's answer: with_mismatched(rows, limit)")
        ratios_N, _ = log_ratios(sequence_batch(sequences), scorer)
        _, mean, _ = moments(ratios_N, torch.ones_like(ratios_N, dtype=torch.bool), self.sum_over_ranks)
        return max(0.0, float(mean))

    def roles(self) -> tuple[RoleUpdate, ...]:
        """The policy learns."""
        return (RoleUpdate("policy"),)

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.kto` over the rows."""
        assert outputs.logprobs_T is not None and batch.ref_logprobs_N is not None
        assert batch.labels_N is not None and batch.baselines_N is not None
        loss, metrics = kto(
            logprobs_N=sum_per_sequence(outputs.logprobs_T, batch),
            ref_logprobs_N=batch.ref_logprobs_N,
            labels_N=batch.labels_N,
            baselines_N=batch.baselines_N,
            beta=self.config.beta,
            sequences=denominators.sequences,
            desirable=denominators.desirable,
            desirable_weight=self.config.desirable_weight,
            undesirable_weight=self.config.undesirable_weight,
        )
        return loss, without_absent(metrics, denominators)
