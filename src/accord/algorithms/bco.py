"""Binary classifier optimisation: thumbs up and down in, cross-entropy out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from accord.algorithms.base import Denominators, Metrics, RoleUpdate, TakesEveryStep
from accord.algorithms.labelled import labelled_batch, log_ratios, without_absent
from accord.batch import TokenBatch
from accord.config import BCOConfig
from accord.data import EncodedLabelled
from accord.losses import bco
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.masking import sum_per_sequence
from accord.ops.statistics import SumOverRanks, one_rank


class BCO(TakesEveryStep):
    """Learns a classifier of liked and disliked answers whose logit is the policy's own reward.

    The shift delta = (mean reward of liked answers + mean reward of disliked ones) / 2 lies half-way between the classes
    (arXiv:2404.04656). Its means run over the steps so far, the present one included.

    Args:
        config: the knobs.
        sum_over_ranks: for these means.
    """

    uses_dropout = False
    temperature = 1.0

    def __init__(self, config: BCOConfig, sum_over_ranks: SumOverRanks = one_rank) -> None:
        self.config, self.sum_over_ranks = config, sum_over_ranks
        self._sums, self._counts = [0.0, 0.0], [0.0, 0.0]  # of liked, of disliked

    @property
    def shift(self) -> float:
        """Delta, in units of the reward; the mean of one class while the other has not been seen."""
        means = [total / count for total, count in zip(self._sums, self._counts, strict=True) if count > 0]
        return sum(means) / len(means) if means else 0.0

    def prepare(self, items: Sequence[EncodedLabelled], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """Rows end to end, with the reference's log-probabilities, the rewards as they are now, and the shift so far."""
        batch = labelled_batch(items)
        ratios_N, reference_N = log_ratios(batch, scorer)
        batch = batch.with_streams(ref_logprobs_N=reference_N, scores_N=self.config.beta * ratios_N)
        return self._shifted(batch), {}

    def _shifted(self, batch: TokenBatch) -> TokenBatch:
        return batch.with_streams(baselines_N=torch.full((batch.sequences,), self.shift))

    def minibatches(self, batch: TokenBatch, generator: torch.Generator) -> Iterator[TokenBatch]:
        """One step takes the whole batch, whose rewards move the shift first. Held-out rows, which no step takes, do not."""
        self._see(batch)
        yield self._shifted(batch)

    def _see(self, batch: TokenBatch) -> None:
        assert batch.scores_N is not None and batch.labels_N is not None
        decay, rewards_N, labels_N = self.config.shift_decay, batch.scores_N.double(), batch.labels_N
        parts = [(rewards_N[labels].sum(), labels.sum().double()) for labels in (labels_N, ~labels_N)]
        sums, counts = self.sum_over_ranks(torch.tensor(parts, dtype=torch.float64)).T.tolist()
        for place in range(2):
            kept = decay if counts[place] else 1.0
            self._sums[place] = kept * self._sums[place] + sums[place]
            self._counts[place] = kept * self._counts[place] + counts[place]

    def roles(self) -> tuple[RoleUpdate, ...]:
        """The policy learns."""
        return (RoleUpdate("policy"),)

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.bco` over the rows."""
        assert outputs.logprobs_T is not None and batch.ref_logprobs_N is not None
        assert batch.labels_N is not None and batch.baselines_N is not None
        loss, metrics = bco(
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
        shift = batch.baselines_N.sum() / denominators.sequences
        return loss, without_absent(metrics, denominators) | {"bco/shift": shift}

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts of the shift."""
        return {"sums": list(self._sums), "counts": list(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint's state."""
        self._sums, self._counts = ([float(x) for x in state[key]] for key in ("sums", "counts"))
