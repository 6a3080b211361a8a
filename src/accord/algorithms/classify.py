"""Classification: labelled texts or words in, cross-entropy of their classes out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accord.algorithms.base import Denominators, Metrics, RoleUpdate, Stateless
from accord.batch import TokenBatch
from accord.config import ClassifyConfig
from accord.data import EncodedClasses
from accord.losses import classify
from accord.model.forward import Outputs
from accord.model.scorer import Scorer


class Classify(Stateless):
    """Learns the class of each text, or of each of its words."""

    uses_dropout = True
    temperature = 1.0

    def __init__(self, config: ClassifyConfig) -> None:
        self.config = config

    def prepare(self, items: Sequence[EncodedClasses], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """Texts end to end; the targets are where a class is read."""
        classes = [number for item in items for number in item.classes]
        return TokenBatch.from_sequences(
            [item.input_ids for item in items],
            [[number is not None for number in item.classes] for item in items],
            classes_T=torch.tensor([number or 0 for number in classes]),
        ), {}

    def roles(self) -> tuple[RoleUpdate, ...]:
        """The classifier learns."""
        return (RoleUpdate("classifier"),)

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.classify` over the places where a class is read."""
        assert outputs.class_logits_KC is not None and batch.classes_T is not None
        return classify(
            logits_KC=outputs.class_logits_KC,
            classes_K=batch.classes_T[batch.target_mask_T],
            tokens=denominators.tokens,
            label_smoothing=self.config.label_smoothing,
        )
