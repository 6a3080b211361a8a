"""Online DPO: scored groups of rollouts in, DPO's loss of the best against the worst out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from accord.algorithms.base import Denominators, Metrics, RoleUpdate, Stateless
from accord.algorithms.pairs import answers
from accord.algorithms.rollouts import UsesRollouts, rollout_batch, rollout_metrics
from accord.batch import TokenBatch
from accord.config import OnlineDPOConfig
from accord.losses import dpo
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.masking import sum_per_sequence, targets_per_sequence
from accord.ops.statistics import SumOverRanks, one_rank
from accord.types import Rollout


class OnlineDPO(UsesRollouts, Stateless):
    """Learns which of its own answers the reward prefers. For the arguments see `UsesRollouts`."""

    def __init__(
        self, config: OnlineDPOConfig, temperature: float = 1.0, sum_over_ranks: SumOverRanks = one_rank
    ) -> None:
        super().__init__(config, temperature, sum_over_ranks)
        self.config = config

    def prepare(self, items: Sequence[Rollout], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """Best and worst of each group, with their log-probabilities under the reference. Groups of one score are left out, and
        counted; where fewer pairs than minibatches are left, such groups fill up, of which nothing is learnt: every rank takes
        every step."""
        batch = rollout_batch(items)
        batch = batch.with_streams(**scorer.score(batch, ("old_logprobs_T", "ref_logprobs_T")))
        assert batch.ref_logprobs_T is not None
        pairs, ties = best_and_worst(items, self.config.missing_eos_penalty or 0.0)
        groups = torch.tensor([1.0] * len(pairs) + [0.0] * len(ties))
        metrics = rollout_metrics(batch, items, self.sum_over_ranks) | {"online_dpo/ties": 1.0 - self.mean(groups)}
        fill = ties[: max(0, self.config.minibatches - len(pairs))]
        members = [n for pair in (*pairs, *fill) for n in pair]
        learnt = rollout_batch([items[n] for n in members]).with_streams(
            pair_N=torch.arange(len(members) // 2).repeat_interleave(2),
            ref_logprobs_N=sum_per_sequence(batch.ref_logprobs_T, batch)[members],
        )
        is_learnt_T = learnt.sequence_T < 2 * len(pairs)
        return learnt.with_streams(target_mask_T=learnt.target_mask_T & is_learnt_T), metrics

    def minibatches(self, batch: TokenBatch, generator: torch.Generator) -> Iterator[TokenBatch]:
        """`epochs` passes, each over all pairs in a new order, cut into `minibatches` steps."""
        for _ in range(self.config.epochs):
            order = torch.randperm(batch.sequences // 2, generator=generator)
            for pairs in order.tensor_split(self.config.minibatches):
                yield batch.select([n for pair in pairs.tolist() for n in (2 * pair, 2 * pair + 1)])

    def roles(self) -> tuple[RoleUpdate, ...]:
        """The policy learns."""
        return (RoleUpdate("policy"),)

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.dpo` over the pairs; what only fills up is left out."""
        assert batch.ref_logprobs_N is not None
        learnt_P = targets_per_sequence(batch)[0::2] > 0
        both = answers(outputs.logprobs_T, batch)
        return dpo(
            chosen_P=both["chosen_P"][learnt_P],
            rejected_P=both["rejected_P"][learnt_P],
            chosen_lengths_P=both["chosen_lengths_P"][learnt_P],
            rejected_lengths_P=both["rejected_lengths_P"][learnt_P],
            ref_chosen_P=batch.ref_logprobs_N[0::2][learnt_P],
            ref_rejected_P=batch.ref_logprobs_N[1::2][learnt_P],
            pairs=denominators.sequences / 2,
            loss=self.config.loss,
            beta=self.config.beta,
            length_normalize=self.config.length_normalize,
        )

    def veto(self, metrics: Metrics) -> str | None:
        """A step without a pair is none: the optimiser's momentum would take it all the same."""
        return "no group had two scores" if metrics["tokens/trained"] == 0 else None


Pair = tuple[int, int]
"""Indices of the better and the worse rollout."""


def best_and_worst(rollouts: Sequence[Rollout], missing_eos_penalty: float = 0.0) -> tuple[list[Pair], list[Pair]]:
    """The best and the worst of each group by score, the first of equal ones; and two of each group in which all are equal."""
    groups: dict[int, list[int]] = {}
    for n, rollout in enumerate(rollouts):
        groups.setdefault(rollout.group, []).append(n)
    scores = [r.total_score - missing_eos_penalty * (r.finish_reason != "stop") for r in rollouts]
    pairs: list[Pair] = []
    ties: list[Pair] = []
    for members in groups.values():
        best, worst = max(members, key=scores.__getitem__), min(members, key=scores.__getitem__)
        if scores[best] > scores[worst]:
            pairs.append((best, worst))
        else:
            ties.append((members[0], members[1]))
    return pairs, ties
