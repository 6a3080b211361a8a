"""Process reward modelling: judged steps in, cross-entropy at the end of each step out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accord.algorithms.base import Denominators, Metrics, RoleUpdate, Stateless
from accord.batch import TokenBatch
from accord.data import EncodedSteps
from accord.losses import process_reward
from accord.model.forward import Outputs
from accord.model.scorer import Scorer


class ProcessRewardModelling(Stateless):
    """Learns how good each step is, at its last token."""

    uses_dropout = True
    temperature = 1.0

    def prepare(self, items: Sequence[EncodedSteps], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """Answers end to end; the ends of their steps are the targets."""
        batch = TokenBatch.from_sequences(
            [item.sequence.input_ids for item in items], [item.sequence.target_mask for item in items]
        )
        labels_K = torch.tensor([label for item in items for label in item.labels])
        return batch.with_streams(labels_T=torch.zeros(batch.tokens).masked_scatter(batch.target_mask_T, labels_K)), {}

    def roles(self) -> tuple[RoleUpdate, ...]:
        """The reward model learns."""
        return (RoleUpdate("reward"),)

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.process_reward` over the steps."""
        assert outputs.scores_T is not None and batch.labels_T is not None
        return process_reward(
            scores_T=outputs.scores_T,
            labels_T=batch.labels_T,
            mask_T=batch.target_mask_T,
            tokens=denominators.tokens,
        )
