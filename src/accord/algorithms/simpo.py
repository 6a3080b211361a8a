"""Simple preference optimisation: pairs in, one loss without a reference out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from accord.algorithms.base import Denominators, Metrics, RoleUpdate, Stateless
from accord.algorithms.pairs import answers, pair_batch
from accord.batch import TokenBatch
from accord.config import SimPOConfig
from accord.data import EncodedPair
from accord.losses import simpo
from accord.model.forward import Outputs
from accord.model.scorer import Scorer


class SimPO(Stateless):
    """Learns to give the chosen answer the greater mean log-probability, by a margin."""

    uses_dropout = True
    temperature = 1.0

    def __init__(self, config: SimPOConfig) -> None:
        self.config = config

    def prepare(self, items: Sequence[EncodedPair], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """Chosen and rejected answer of each pair, one behind the other."""
        return pair_batch(items), {}

    def roles(self) -> tuple[RoleUpdate, ...]:
        """The policy learns."""
        return (RoleUpdate("policy"),)

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.simpo` over the pairs."""
        return simpo(
            **answers(outputs.logprobs_T, batch),
            pairs=denominators.sequences / 2,
            beta=self.config.beta,
            gamma_beta_ratio=self.config.gamma_beta_ratio,
            loss=self.config.loss,
            label_smoothing=self.config.label_smoothing,
            alpha=self.config.alpha,
            sft_coef=self.config.sft_coef,
        )
