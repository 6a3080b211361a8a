"""On-policy distillation: the student's own responses in, its divergence from the teacher at each of their tokens out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from accord.algorithms.base import Denominators, Metrics, RoleUpdate, Stateless
from accord.algorithms.rollouts import UsesRollouts, rollout_batch, rollout_metrics
from accord.batch import TokenBatch
from accord.config import DistillConfig
from accord.losses import distill
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.statistics import SumOverRanks, one_rank
from accord.types import Rollout


class Distill(UsesRollouts, Stateless):
    """Learns the distribution of the teacher, which has the role `reference`. For the arguments see `UsesRollouts`."""

    def __init__(
        self, config: DistillConfig, temperature: float = 1.0, sum_over_ranks: SumOverRanks = one_rank
    ) -> None:
        super().__init__(config, temperature, sum_over_ranks)
        self.config = config

    def prepare(self, items: Sequence[Rollout], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """Responses end to end. Scores are logged where a reward is named; nothing is learnt from them."""
        batch = rollout_batch(items, scored=all(rollout.score is not None for rollout in items))
        return batch, rollout_metrics(batch, items, self.sum_over_ranks)

    def roles(self) -> tuple[RoleUpdate, ...]:
        """The policy learns, beside the teacher."""
        return (RoleUpdate("policy", teacher="reference", beta=self.config.beta),)

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.distill` over the tokens of the responses."""
        assert outputs.divergences_T is not None
        return distill(divergences_T=outputs.divergences_T, mask_T=batch.target_mask_T, tokens=denominators.tokens)
