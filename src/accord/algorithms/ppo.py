"""Proximal policy optimisation: scored rollouts in, clipped policy and value losses out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from accord.algorithms.base import Denominators, Metrics, RoleUpdate
from accord.algorithms.rollouts import rollout_batch, rollout_metrics, shape_scores
from accord.batch import TokenBatch
from accord.config import PPOConfig
from accord.losses import kl_penalty, ppo_policy, ppo_value
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.advantages import gae
from accord.ops.kl import AdaptiveKLController, FixedKLController, kl_per_token
from accord.ops.masking import last_targets, sum_per_sequence
from accord.ops.statistics import RunningMoments, SumOverRanks, moments, one_rank, whiten
from accord.types import Rollout


class PPO:
    """One iteration of PPO. Keeps the KL coefficient, the reward statistics and the number of iterations prepared.

    Args:
        config: the knobs.
        temperature: at which responses are sampled, and log-probabilities compared.
        critic_on_trunk: the value head sits on the policy, so one pass gives both losses.
        sum_over_ranks: for statistics over the whole batch.
    """

    uses_dropout = False

    def __init__(
        self,
        config: PPOConfig,
        temperature: float = 1.0,
        critic_on_trunk: bool = False,
        sum_over_ranks: SumOverRanks = one_rank,
    ) -> None:
        self.config, self.temperature = config, temperature
        self.critic_on_trunk, self.sum_over_ranks = critic_on_trunk, sum_over_ranks
        kl = config.kl
        self.controller = (
            FixedKLController(kl.coef) if kl.target is None else AdaptiveKLController(kl.coef, kl.target, kl.horizon)
        )
        self.reward_moments = RunningMoments()
        self.prepared = 0

    # --- from rollouts to a batch ------------------------------------------------------------------------------------

    def prepare(self, items: Sequence[Rollout], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """Streams of the models, rewards, advantages and returns; one batch of all rollouts."""
        self.prepared += 1
        batch = rollout_batch(items)
        full = ("full_kl_T",) if self.config.kl.estimator == "full" else ()
        streams = scorer.score(batch, ("old_logprobs_T", "ref_logprobs_T", "values_T", *full))
        kl_T = streams.pop("full_kl_T", None)
        batch = batch.with_streams(**streams)
        metrics = rollout_metrics(batch, items, self.sum_over_ranks)
        assert batch.old_logprobs_T is not None and batch.ref_logprobs_T is not None
        if kl_T is None:
            kl_T = kl_per_token(batch.old_logprobs_T, batch.ref_logprobs_T, self.config.kl.estimator)
        penalty_T = -self.controller.coef * kl_T if self.config.kl.use == "reward" else torch.zeros_like(kl_T)
        scores_N = shape_scores(batch, items, self.config, self.reward_moments, self.sum_over_ranks)
        rewards_T = penalty_T.index_add(0, last_targets(batch), scores_N)
        batch, advantage_metrics = self._with_advantages(batch, rewards_T)
        samples = float(self.sum_over_ranks(torch.tensor(float(batch.sequences))))
        metrics |= advantage_metrics | {
            "ppo/mean_scores": self._mean(scores_N),
            "ppo/mean_non_score_reward": self._mean(sum_per_sequence(penalty_T, batch)),
            "objective/kl_coef": self.controller.coef,
        }
        self.controller.update(metrics["objective/kl"], int(samples))
        return batch, metrics

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

    def _mean(self, values_N: Tensor) -> float:
        return float(moments(values_N, torch.ones_like(values_N, dtype=torch.bool), self.sum_over_ranks)[1])

    # --- from a batch to steps ---------------------------------------------------------------------------------------

    def minibatches(self, batch: TokenBatch, generator: torch.Generator) -> Iterator[TokenBatch]:
        """`epochs` passes, each over all sequences in a new order, cut into `minibatches` steps."""
        for _ in range(self.config.epochs):
            order = torch.randperm(batch.sequences, generator=generator)
            for members in order.tensor_split(self.config.minibatches):
                yield batch.select(members.tolist())

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
            entropies_T=outputs.entropies_T,
            entropy_coef=self.config.entropy_coef,
        )
        if self.config.kl.use == "reward":
            return [loss], metrics
        assert batch.ref_logprobs_T is not None
        kl_loss, kl_metrics = kl_penalty(
            logprobs_T=outputs.logprobs_T,
            ref_logprobs_T=batch.ref_logprobs_T,
            mask_T=batch.target_mask_T,
            tokens=denominators.tokens,
            estimator=self.config.kl.estimator,
            coef=self.controller.coef,
        )
        return [loss, kl_loss], metrics | kl_metrics

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

    def veto(self, metrics: Metrics) -> str | None:
        """Skip a step whose mean ratio shows that the policy has left the rollouts behind."""
        ratio, guard = metrics.get("ppo/policy/ratio_mean"), self.config.ratio_guard
        if ratio is None or guard is None or ratio <= guard:
            return None
        return f"mean ratio {ratio:.1f} exceeds algorithm.ratio_guard {guard:g}"

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """KL coefficient, reward statistics, iterations prepared."""
        return {
            "controller": self.controller.state_dict(),
            "reward_moments": self.reward_moments.state_dict(),
            "prepared": self.prepared,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint's state."""
        self.controller.load_state_dict(state["controller"])
        self.reward_moments.load_state_dict(state["reward_moments"])
        self.prepared = int(state["prepared"])
