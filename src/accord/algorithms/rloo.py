"""REINFORCE leave-one-out: scored groups of rollouts in, a clipped surrogate of whole responses out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from accord.algorithms.base import Denominators, Metrics
from accord.algorithms.policy_gradient import FromRollouts
from accord.batch import TokenBatch
from accord.config import RLOOConfig
from accord.losses import approximate_kl, log_ratios_of, rloo
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.advantages import leave_one_out, spread_over_tokens
from accord.ops.masking import last_targets, sum_per_sequence
from accord.ops.statistics import SumOverRanks, one_rank
from accord.types import Rollout


class RLOO(FromRollouts):
    """One iteration of RLOO. For the arguments see `FromRollouts`."""

    def __init__(self, config: RLOOConfig, temperature: float = 1.0, sum_over_ranks: SumOverRanks = one_rank) -> None:
        super().__init__(config, temperature, sum_over_ranks)
        self.config = config

    def prepare(self, items: Sequence[Rollout], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """The reward of a response is its score minus its whole KL penalty; its baseline the mean of the others."""
        scored = self.score_rollouts(items, scorer)
        batch = scored.batch
        assert batch.group_N is not None
        rewards_N = sum_per_sequence(scored.rewards_T, batch)
        advantages_N = leave_one_out(rewards_N, batch.group_N)
        metrics = scored.metrics | {
            "ppo/advantages/mean": self.mean(advantages_N),
            "ppo/advantages/std": self.mean(advantages_N.square()) ** 0.5,
        }
        return batch.with_streams(advantages_T=spread_over_tokens(advantages_N, batch)), metrics

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.rloo`, plus the KL if it is a loss term."""
        assert outputs.logprobs_T is not None and outputs.entropies_T is not None
        assert batch.old_logprobs_T is not None and batch.advantages_T is not None
        loss, metrics = rloo(
            logprobs_N=sum_per_sequence(outputs.logprobs_T, batch),
            old_logprobs_N=sum_per_sequence(batch.old_logprobs_T, batch),
            advantages_N=batch.advantages_T[last_targets(batch)],
            sequences=denominators.sequences,
            clip=self.config.clip,
            weights_N=None if batch.weights_T is None else batch.weights_T[last_targets(batch)],
        )
        log_ratios_T = log_ratios_of(
            logprobs=outputs.logprobs_T.detach(), old_logprobs=batch.old_logprobs_T, mask=batch.target_mask_T
        )
        metrics |= approximate_kl(log_ratios_T=log_ratios_T, mask_T=batch.target_mask_T, tokens=denominators.tokens)
        metrics["objective/entropy"] = outputs.entropies_T.detach().sum() / denominators.tokens
        weights_T = batch.target_mask_T.float() / denominators.sequences  # of whole responses, as the score is
        kl = self.kl_term(outputs, batch, denominators, weights_T)
        return (loss, metrics) if kl is None else (loss + kl[0], metrics | kl[1])
