"""Group relative policy optimisation and its variants: scored groups of rollouts in, a clipped surrogate out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from accord.algorithms.base import Denominators, Metrics
from accord.algorithms.policy_gradient import FromRollouts
from accord.batch import TokenBatch
from accord.config import GRPOConfig
from accord.losses import grpo, token_weights
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.advantages import SAME_SCORE, decoupled, group_relative, group_spread, spread_over_tokens
from accord.ops.masking import sum_per_sequence
from accord.ops.statistics import SumOverRanks, one_rank
from accord.types import Rollout


class GRPO(FromRollouts):
    """One iteration of GRPO. For the other arguments see `FromRollouts`.

    Args:
        longest: greatest length of a response (`rollout.max_new_tokens`).
        weights: of the reward sources by label, for `normalize_each`.
    """

    def __init__(
        self,
        config: GRPOConfig,
        temperature: float = 1.0,
        longest: int = 1,
        sum_over_ranks: SumOverRanks = one_rank,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(config, temperature, sum_over_ranks)
        self.config, self.longest, self.weights = config, longest, dict(weights or {})

    def prepare(self, items: Sequence[Rollout], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """Advantages of whole responses relative to their group, at each of their tokens."""
        scored = self.score_rollouts(items, scorer, penalties_N=self._length_penalties(items))
        batch = scored.batch
        assert batch.group_N is not None
        scores_RN, applies_RN, weights_R = self._compared(items, scored.scores_N)
        if self.config.normalize_each:
            advantages_N = decoupled(scores_RN, applies_RN, weights_R, batch.group_N, self.sum_over_ranks)
        else:
            rewards_N = sum_per_sequence(scored.rewards_T, batch)
            advantages_N = group_relative(rewards_N, batch.group_N, self.config.scale, self.sum_over_ranks)
        spread_N = torch.zeros(batch.sequences)  # where no source has a weight, it stays
        for scores_N, applies_N in zip(scores_RN, applies_RN, strict=True):
            spread_N = torch.maximum(spread_N, group_spread(scores_N, batch.group_N, applies_N))
        metrics = scored.metrics | {
            "ppo/advantages/mean": self.mean(advantages_N),
            "ppo/advantages/std": self.mean(advantages_N.square()) ** 0.5,
            "grpo/equal_groups": self.mean((spread_N <= SAME_SCORE).float()),
        }
        if self.config.mask_truncated:
            batch = batch.with_streams(learnt_N=torch.tensor([rollout.finish_reason == "stop" for rollout in items]))
        return batch.with_streams(advantages_T=spread_over_tokens(advantages_N, batch)), metrics

    def _compared(self, items: Sequence[Rollout], scores_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores by which the responses of a group are compared, where they apply, and their weights: the shaped ones alone, or
        the sources' own, of which those of weight 0 are only watched."""
        if not self.config.normalize_each:
            return scores_N[None], torch.ones_like(scores_N, dtype=torch.bool)[None], torch.ones(1)
        weights = {label: weight for label, weight in self.weights.items() if weight != 0}
        values = [[rollout.scores[label] for rollout in items] for label in weights]
        return (
            torch.tensor([[0.0 if value is None else value for value in row] for row in values]),
            torch.tensor([[value is not None for value in row] for row in values]),
            torch.tensor(list(weights.values())),
        )

    def _length_penalties(self, items: Sequence[Rollout]) -> Tensor | None:
        """DAPO's soft overlong punishment: from 0 where the last `overlong` tokens begin to 1 at the limit; float32 [N]."""
        overlong = self.config.overlong
        if overlong is None:
            return None
        lengths_N = torch.tensor([len(rollout.response_ids) for rollout in items])
        return ((lengths_N - (self.longest - overlong)) / overlong).clamp(0.0, 1.0)

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.grpo`, plus the KL if it is a loss term; as if what nothing is learnt from were not there."""
        assert outputs.logprobs_T is not None and outputs.entropies_T is not None
        config = self.config
        entropy = outputs.entropies_T.detach().sum() / denominators.tokens
        if batch.learnt_N is not None:
            learnt_T = batch.target_mask_T & batch.learnt_N[batch.sequence_T]
            batch, denominators = batch.with_streams(target_mask_T=learnt_T), denominators.learnt
        assert batch.old_logprobs_T is not None and batch.advantages_T is not None
        weights_T = token_weights(
            mask_T=batch.target_mask_T,
            sequence_T=batch.sequence_T,
            aggregate=config.aggregate,
            tokens=denominators.tokens,
            sequences=denominators.sequences,
            longest=self.longest,
        )
        kl = self.kl_term(outputs, batch, denominators, weights_T)
        if batch.weights_T is not None:
            weights_T = weights_T * batch.weights_T
        loss, metrics = grpo(
            logprobs_T=outputs.logprobs_T,
            old_logprobs_T=batch.old_logprobs_T,
            advantages_T=batch.advantages_T,
            mask_T=batch.target_mask_T,
            weights_T=weights_T,
            tokens=denominators.tokens,
            clip_low=config.clip,
            clip_high=config.clip if config.clip_high is None else config.clip_high,
            sequence_T=batch.sequence_T if config.ratio == "sequence" else None,
            dual_clip=config.dual_clip,
            cispo=config.surrogate == "cispo",
        )
        metrics["objective/entropy"] = entropy
        return (loss, metrics) if kl is None else (loss + kl[0], metrics | kl[1])

    def veto(self, metrics: Metrics) -> str | None:
        """As all policy gradients; and a step of cut responses alone is none: the optimiser's momentum would take it all the
        same."""
        return super().veto(metrics) or ("no response ended" if metrics.get("tokens/trained") == 0 else None)
