"""REINFORCE++: scored rollouts in, PPO's clipped loss with whitened returns out; no critic."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from accord.algorithms.base import Denominators, Metrics
from accord.algorithms.policy_gradient import FromRollouts
from accord.batch import TokenBatch
from accord.config import ReinforceConfig
from accord.losses import ppo_policy
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.advantages import group_relative, returns_to_go
from accord.ops.masking import last_targets
from accord.ops.statistics import SumOverRanks, moments, one_rank, whiten
from accord.types import Rollout


class Reinforce(FromRollouts):
    """One iteration of REINFORCE++. For the arguments see `FromRollouts`."""

    def __init__(
        self, config: ReinforceConfig, temperature: float = 1.0, sum_over_ranks: SumOverRanks = one_rank
    ) -> None:
        super().__init__(config, temperature, sum_over_ranks)
        self.config = config

    def prepare(self, items: Sequence[Rollout], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """Returns of each token, minus the prompt's mean score if wanted, whitened over the whole batch."""
        scored = self.score_rollouts(items, scorer)
        batch, rewards_T = scored.batch, scored.rewards_T
        assert batch.group_N is not None
        if self.config.baseline:
            centred_N = group_relative(scored.scores_N, batch.group_N, "none")
            rewards_T = rewards_T.index_add(0, last_targets(batch), centred_N - scored.scores_N)
        returns_T = returns_to_go(batch, rewards_T, self.config.gamma)
        _, mean, variance = moments(returns_T, batch.target_mask_T, self.sum_over_ranks)
        advantages_T = whiten(returns_T, batch.target_mask_T, sum_over_ranks=self.sum_over_ranks)
        metrics = scored.metrics | {
            "ppo/advantages/mean": float(mean),
            "ppo/advantages/std": float(variance.sqrt()),
        }
        return batch.with_streams(advantages_T=advantages_T), metrics

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.ppo_policy`, plus the KL if it is a loss term."""
        assert outputs.logprobs_T is not None and batch.old_logprobs_T is not None and batch.advantages_T is not None
        loss, metrics = ppo_policy(
            logprobs_T=outputs.logprobs_T,
            old_logprobs_T=batch.old_logprobs_T,
            advantages_T=batch.advantages_T,
            mask_T=batch.target_mask_T,
            tokens=denominators.tokens,
            clip=self.config.clip,
            weights_T=batch.weights_T,
            entropies_T=outputs.entropies_T,
        )
        kl = self.kl_term(outputs, batch, denominators)
        return (loss, metrics) if kl is None else (loss + kl[0], metrics | kl[1])
