"""Rejection sampling: scored rollouts in, the negative log-likelihood of the best of them out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accord.algorithms.base import Denominators, Metrics, RoleUpdate, Stateless
from accord.algorithms.rollouts import UsesRollouts, rollout_batch, rollout_metrics
from accord.batch import TokenBatch
from accord.config import RejectionConfig
from accord.losses import sft
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.statistics import SumOverRanks, moments, one_rank
from accord.types import Rollout


class Rejection(UsesRollouts, Stateless):
    """Learns the responses that were kept, as examples are learnt. For the arguments see `UsesRollouts`."""

    uses_dropout = True

    def __init__(
        self, config: RejectionConfig, temperature: float = 1.0, sum_over_ranks: SumOverRanks = one_rank
    ) -> None:
        super().__init__(config, temperature, sum_over_ranks)
        self.config = config

    def prepare(self, items: Sequence[Rollout], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """One batch of the kept responses. Where they are fewer than the minibatches, others fill up, of which nothing is learnt:
        every rank takes every step."""
        batch = rollout_batch(items)
        batch = batch.with_streams(**scorer.score(batch, ("old_logprobs_T", "ref_logprobs_T")))
        chosen = kept(items, self.config)
        scores_N = torch.tensor([rollout.total_score for rollout in items])
        is_kept_N = torch.zeros(len(items), dtype=torch.bool)
        is_kept_N[chosen] = True
        count, mean, _ = moments(scores_N, is_kept_N, self.sum_over_ranks)
        metrics = rollout_metrics(batch, items, self.sum_over_ranks) | {"rejection/kept": self.mean(is_kept_N.float())}
        if count > 0:
            metrics["rejection/score_kept"] = float(mean)
        fill = [n for n in range(len(items)) if n not in set(chosen)][: max(0, self.config.minibatches - len(chosen))]
        learnt = rollout_batch([items[n] for n in (*chosen, *fill)])
        return learnt.with_streams(target_mask_T=learnt.target_mask_T & (learnt.sequence_T < len(chosen))), metrics

    def roles(self) -> tuple[RoleUpdate, ...]:
        """The policy learns."""
        return (RoleUpdate("policy"),)

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.sft` over the tokens of kept responses."""
        assert outputs.logprobs_T is not None
        return sft(logprobs_T=outputs.logprobs_T, mask_T=batch.target_mask_T, tokens=denominators.tokens.clamp(min=1))

    def veto(self, metrics: Metrics) -> str | None:
        """A step in which nothing is kept is none: the optimiser's momentum would take it all the same."""
        return "no response was kept" if metrics["tokens/trained"] == 0 else None


def kept(rollouts: Sequence[Rollout], config: RejectionConfig) -> list[int]:
    """Indices of the rollouts to learn, in their order; of equal scores the first is the best."""
    scores = [rollout.total_score for rollout in rollouts]
    match config.keep:
        case "threshold":
            assert config.threshold is not None
            return [n for n, score in enumerate(scores) if score >= config.threshold]
        case "fraction":
            best = sorted(range(len(scores)), key=lambda n: -scores[n])
            return sorted(best[: max(1, round(config.fraction * len(scores)))])
    best_of: dict[int, int] = {}
    for n, rollout in enumerate(rollouts):
        if rollout.group not in best_of or scores[n] > scores[best_of[rollout.group]]:
            best_of[rollout.group] = n
    return sorted(best_of.values())
