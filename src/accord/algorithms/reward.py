"""Reward modelling: pairs in, Bradley-Terry out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from accord.algorithms.base import Denominators, Metrics, RoleUpdate, Stateless
from accord.algorithms.pairs import pair_batch
from accord.batch import TokenBatch
from accord.config import RewardConfig
from accord.data import EncodedPair
from accord.losses import bradley_terry
from accord.model.forward import Outputs
from accord.model.scorer import Scorer


class RewardModelling(Stateless):
    """Learns to score the chosen answer above the rejected one."""

    uses_dropout = True
    temperature = 1.0

    def __init__(self, config: RewardConfig) -> None:
        self.config = config

    def prepare(self, items: Sequence[EncodedPair], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """Chosen and rejected of each pair, one behind the other."""
        return pair_batch(items), {}

    def roles(self) -> tuple[RoleUpdate, ...]:
        """The reward model learns."""
        return (RoleUpdate("reward"),)

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.bradley_terry` over the pairs."""
        assert outputs.scores_N is not None
        return bradley_terry(
            chosen_P=outputs.scores_N[0::2],
            rejected_P=outputs.scores_N[1::2],
            pairs=denominators.sequences / 2,
            margins_P=None if batch.margins_N is None else batch.margins_N[0::2],
            centre_coef=self.config.centre_coef,
        )
