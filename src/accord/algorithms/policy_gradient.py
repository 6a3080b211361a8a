"""What all policy gradients share: rewards of rollouts, importance weights, the KL to the reference, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accord.algorithms.base import Denominators, Metrics
from accord.algorithms.rollouts import UsesRollouts, rollout_batch, rollout_metrics, shape_scores, token_scores
from accord.batch import TokenBatch
from accord.config import PolicyGradient
from accord.losses import kl_penalty
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.importance import importance_weights
from accord.ops.kl import AdaptiveKLController, FixedKLController, kl_per_token
from accord.ops.masking import last_targets, sum_per_sequence
from accord.ops.statistics import RunningMoments, SumOverRanks, moments, one_rank
from accord.types import Rollout


@dataclass(frozen=True)
class Scored:
    """Rollouts with their streams and rewards."""

    batch: TokenBatch
    """With `old_logprobs_T`, `ref_logprobs_T` and what else was wanted."""
    rewards_T: Tensor
    """The score at the last response token, scores of tokens at theirs, and the KL penalty at each if it is part of the reward;
    float32 [T]."""
    scores_N: Tensor
    """Shaped scores of whole responses, with those of their tokens; float32 [N]."""
    metrics: Metrics


class FromRollouts(UsesRollouts):
    """What a policy gradient keeps (KL coefficient, reward statistics, iterations prepared), and when it holds back.

    Args:
        config: how scores are shaped, and how many steps a batch is used for.
        temperature: at which responses are sampled, and log-probabilities compared.
        sum_over_ranks: for statistics over the whole batch.
    """

    def __init__(
        self, config: PolicyGradient, temperature: float = 1.0, sum_over_ranks: SumOverRanks = one_rank
    ) -> None:
        super().__init__(config, temperature, sum_over_ranks)
        self.shaping = config
        kl = config.kl
        self.controller = (
            FixedKLController(kl.coef) if kl.target is None else AdaptiveKLController(kl.coef, kl.target, kl.horizon)
        )
        self.reward_moments = RunningMoments()
        self.prepared = 0
        self.coef_used = kl.coef
        """The KL's weight in the iteration prepared last; the controller holds the next one's."""

    def score_rollouts(
        self, items: Sequence[Rollout], scorer: Scorer, *wanted: str, penalties_N: Tensor | None = None
    ) -> Scored:
        """Run the frozen passes, shape the scores, add the KL penalty, and let the controller react.

        Args:
            items: scored.
            scorer: runs the passes.
            wanted: streams beside the log-probabilities.
            penalties_N: of the algorithm's own, see `shape_scores`.
        """
        self.prepared += 1
        kl = self.shaping.kl
        batch = rollout_batch(items)
        full = ("full_kl_T",) if kl.estimator == "full" else ()
        streams = scorer.score(batch, ("old_logprobs_T", "ref_logprobs_T", *wanted, *full))
        kl_T = streams.pop("full_kl_T", None)
        batch = batch.with_streams(**streams)
        metrics = rollout_metrics(batch, items, self.sum_over_ranks)
        assert batch.old_logprobs_T is not None and batch.ref_logprobs_T is not None
        if kl_T is None:
            kl_T = kl_per_token(batch.old_logprobs_T, batch.ref_logprobs_T, kl.estimator)
        penalty_T = -self.controller.coef * kl_T if kl.use == "reward" else torch.zeros_like(kl_T)
        of_tokens_T = token_scores(items)
        if of_tokens_T is not None:
            of_tokens_T = of_tokens_T * self.shaping.reward_scale
        batch, weighing = self._weighted(batch)
        scores_N = shape_scores(batch, items, self.shaping, self.reward_moments, self.sum_over_ranks, penalties_N)
        totals_N = scores_N if of_tokens_T is None else scores_N + sum_per_sequence(of_tokens_T, batch)
        metrics |= weighing | {
            "ppo/mean_scores": self.mean(totals_N),
            "ppo/mean_non_score_reward": self.mean(sum_per_sequence(penalty_T, batch)),
            "objective/kl_coef": self.controller.coef,
        }
        self.coef_used = self.controller.coef
        samples = float(self.sum_over_ranks(torch.tensor(float(batch.sequences))))
        self.controller.update(metrics["objective/kl"], int(samples))
        rewards_T = penalty_T if of_tokens_T is None else penalty_T + of_tokens_T
        return Scored(batch, rewards_T.index_add(0, last_targets(batch), scores_N), totals_N, metrics)

    def _weighted(self, batch: TokenBatch) -> tuple[TokenBatch, Metrics]:
        """The batch with importance weights, if the recipe wants any, and how large they are."""
        config, mask_T = self.shaping, batch.target_mask_T
        if config.correction == "none":
            return batch, {}
        assert batch.old_logprobs_T is not None and batch.sampler_logprobs_T is not None
        weights_T, ratio_T = importance_weights(
            batch,
            batch.old_logprobs_T,
            batch.sampler_logprobs_T,
            config.correction,
            config.correction_cap,
            config.correction_level,
        )
        held_T = (weights_T != ratio_T).float()
        return batch.with_streams(weights_T=weights_T), {
            "sampling/importance_mean": float(moments(ratio_T, mask_T, self.sum_over_ranks)[1]),
            "sampling/importance_max": float(ratio_T.max()),
            "sampling/importance_held": float(moments(held_T, mask_T, self.sum_over_ranks)[1]),
        }

    def kl_term(
        self, outputs: Outputs, batch: TokenBatch, denominators: Denominators, weights_T: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The KL to the reference as a loss term, if the recipe wants it there; a mean over tokens, or with their weights."""
        kl = self.shaping.kl
        if kl.use == "reward":
            return None
        assert outputs.logprobs_T is not None and batch.ref_logprobs_T is not None
        return kl_penalty(
            logprobs_T=outputs.logprobs_T,
            ref_logprobs_T=batch.ref_logprobs_T,
            mask_T=batch.target_mask_T,
            tokens=denominators.tokens,
            estimator=kl.estimator,
            coef=self.coef_used,
            weights_T=weights_T,
        )

    def veto(self, metrics: Metrics) -> str | None:
        """Skip a step whose mean ratio shows that the policy has left the rollouts behind."""
        ratio, guard = metrics.get("ppo/policy/ratio_mean"), self.shaping.ratio_guard
        if ratio is None or guard is None or ratio <= guard:
            return None
        return f"mean ratio {ratio:.1f} exceeds algorithm.ratio_guard {guard:g}"

    def enough(self, metrics: Metrics) -> bool:
        """Whether the policy has moved as far from the old one as `kl_stop` allows."""
        moved, limit = metrics.get("ppo/policy/approxkl"), self.shaping.kl_stop
        return moved is not None and limit is not None and moved > limit

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
