"""Proximal policy optimisation: scored rollouts in, clipped policy and value losses out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accord.algorithms.base import Denominators, Metrics, RoleUpdate
from accord.algorithms.policy_gradient import FromRollouts
from accord.batch import TokenBatch
from accord.config import PPOConfig
from accord.losses import ppo_policy, ppo_value
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.advantages import gae
from accord.ops.statistics import SumOverRanks, moments, one_rank, whiten
from accord.types import Rollout


class PPO(FromRollouts):
    """One iteration of PPO.

    Args:
        config: the knobs.
        temperature: at which responses are sampled, and log-probabilities compared.
        critic_on_trunk: the value head sits on the policy, so one pass gives both losses.
        sum_over_ranks: for statistics over the whole batch.
    """

    def __init__(
        self,
        config: PPOConfig,
        temperature: float = 1.0,
        critic_on_trunk: bool = False,
        sum_over_ranks: SumOverRanks = one_rank,
    ) -> None:
        super().__init__(config, temperature, sum_over_ranks)
        self.config, self.critic_on_trunk = config, critic_on_trunk

    def prepare(self, items: Sequence[Rollout], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """Streams of the models, rewards, advantages and returns; one batch of all rollouts."""
        scored = self.score_rollouts(items, scorer, "values_T")
        batch, metrics = self._with_advantages(scored.batch, scored.rewards_T)
        return batch, scored.metrics | metrics

    def _with_advantages(self, batch: TokenBatch, rewards_T: Tensor) -> tuple[TokenBatch, Metrics]:
        config, mask_T = self.config, batch.target_mask_T
        assert batch.values_T is not None
        if config.whiten_rewards:
            rewards_T = whiten(rewards_T, mask_T, shift_mean=False, sum_over_ranks=self.sum_over_ranks)
        advantages_T, returns_T = gae(batch, rewards_T, batch.values_T, config.gamma, config.lam)
        _, mean, variance = moments(advantages_T, mask_T, self.sum_over_ranks)
        _, returns_mean, returns_variance = moments(returns_T, mask_T, self.sum_over_ranks)
        _, _, error_variance = moments(returns_T - batch.values_T, mask_T, self.sum_over_ranks)
        metrics = {
            "ppo/advantages/mean": float(mean),
            "ppo/advantages/std": float(variance.sqrt()),
            "ppo/returns/mean": float(returns_mean),
            "ppo/val/var_explained": float(1 - error_variance / returns_variance.clamp(min=1e-8)),
        }
        if config.whiten_advantages:
            advantages_T = whiten(advantages_T, mask_T, sum_over_ranks=self.sum_over_ranks)
        streams = {"rewards_T": rewards_T, "advantages_T": advantages_T, "returns_T": returns_T}
        return batch.with_streams(**streams), metrics

    @property
    def warming_up(self) -> bool:
        """Whether only the value function learns in the iteration prepared last."""
        return self.prepared <= self.config.value_warmup

    def roles(self) -> tuple[RoleUpdate, ...]:
        """Policy and critic; in the warm-up the policy's weights do not move."""
        if self.critic_on_trunk:
            return (RoleUpdate("policy", entropy=True, heads_only=self.warming_up),)
        critic = RoleUpdate("critic")
        return (critic,) if self.warming_up else (RoleUpdate("policy", entropy=True), critic)

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Policy loss, value loss, or both where the critic sits on the policy's trunk."""
        losses: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        if outputs.logprobs_T is not None and role == "policy":
            policy_losses, metrics = self._policy_loss(outputs, batch, denominators)
            losses += [] if self.warming_up else policy_losses
        if outputs.values_T is not None:
            value_loss, value_metrics = self._value_loss(outputs.values_T, batch, denominators)
            losses.append(self.config.value_coef * value_loss)
            metrics |= value_metrics
        total = torch.stack(losses).sum()
        return total, metrics | {"ppo/loss/total": total.detach()}

    def _policy_loss(
        self, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        assert outputs.logprobs_T is not None and batch.old_logprobs_T is not None and batch.advantages_T is not None
        loss, metrics = ppo_policy(
            logprobs_T=outputs.logprobs_T,
            old_logprobs_T=batch.old_logprobs_T,
            advantages_T=batch.advantages_T,
            mask_T=batch.target_mask_T,
            tokens=denominators.tokens,
            clip=self.config.clip,
            dual_clip=self.config.dual_clip,
            weights_T=batch.weights_T,
            entropies_T=outputs.entropies_T,
            entropy_coef=self.config.entropy_coef,
        )
        kl = self.kl_term(outputs, batch, denominators)
        return ([loss], metrics) if kl is None else ([loss, kl[0]], metrics | kl[1])

    def _value_loss(
        self, values_T: Tensor, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.values_T is not None and batch.returns_T is not None
        return ppo_value(
            values_T=values_T,
            old_values_T=batch.values_T,
            returns_T=batch.returns_T,
            mask_T=batch.target_mask_T,
            tokens=denominators.tokens,
            value_clip=self.config.value_clip,
        )
