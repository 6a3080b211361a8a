"""ReMax: scored rollouts and the greedy response to each prompt in, a REINFORCE loss out; no critic."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from accord.algorithms.base import Denominators, Metrics
from accord.algorithms.policy_gradient import FromRollouts
from accord.algorithms.rollouts import shape_alike
from accord.batch import TokenBatch
from accord.config import ReMaxConfig
from accord.losses import grpo, token_weights
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.advantages import returns_to_go
from accord.ops.masking import last_targets
from accord.ops.statistics import SumOverRanks, moments, one_rank
from accord.types import Rollout


class ReMax(FromRollouts):
    """One iteration of ReMax. For the arguments see `FromRollouts`."""

    def __init__(self, config: ReMaxConfig, temperature: float = 1.0, sum_over_ranks: SumOverRanks = one_rank) -> None:
        super().__init__(config, temperature, sum_over_ranks)
        self.config = config

    def prepare(self, items: Sequence[Rollout], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """Return of each token, minus the score of the greedy response to its prompt (the paper's equation 5).

        Raises:
            ValueError: a rollout has no greedy response beside it.
        """
        scored = self.score_rollouts(items, scorer)
        baselines_N = shape_alike(
            [_greedy(n, rollout) for n, rollout in enumerate(items)], self.config, self.reward_moments
        )
        rewards_T = scored.rewards_T.index_add(0, last_targets(scored.batch), -baselines_N)
        advantages_T = returns_to_go(scored.batch, rewards_T, self.config.gamma)
        _, mean, variance = moments(advantages_T, scored.batch.target_mask_T, self.sum_over_ranks)
        metrics = scored.metrics | {
            "remax/greedy_mean": self.mean(baselines_N),
            "ppo/advantages/mean": float(mean),
            "ppo/advantages/std": float(variance.sqrt()),
        }
        return scored.batch.with_streams(advantages_T=advantages_T), metrics

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over the tokens of a response, mean over responses. At the first step the gradient is that of REINFORCE; at later
        ones on the same batch the clipped ratio of `losses.grpo` stands in for the lost agreement."""
        assert outputs.logprobs_T is not None and outputs.entropies_T is not None
        assert batch.old_logprobs_T is not None and batch.advantages_T is not None
        weights_T = token_weights(
            mask_T=batch.target_mask_T,
            sequence_T=batch.sequence_T,
            aggregate="constant",
            tokens=denominators.tokens,
            sequences=denominators.sequences,
            longest=1,
        )
        loss, metrics = grpo(
            logprobs_T=outputs.logprobs_T,
            old_logprobs_T=batch.old_logprobs_T,
            advantages_T=batch.advantages_T,
            mask_T=batch.target_mask_T,
            weights_T=weights_T if batch.weights_T is None else weights_T * batch.weights_T,
            tokens=denominators.tokens,
            clip_low=self.config.clip,
            clip_high=self.config.clip,
        )
        metrics["objective/entropy"] = outputs.entropies_T.detach().sum() / denominators.tokens
        kl = self.kl_term(outputs, batch, denominators, weights_T)
        return (loss, metrics) if kl is None else (loss + kl[0], metrics | kl[1])


def _greedy(number: int, rollout: Rollout) -> Rollout:
    if rollout.greedy is None:
        raise ValueError(f"rollout {number} has no greedy response beside it, whose score is ReMax's baseline")
    return rollout.greedy
