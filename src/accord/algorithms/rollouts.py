"""What all algorithms that learn from rollouts share: the batch, its scores, metrics of the sampling, how a batch is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from accord.algorithms.base import RoleUpdate
from accord.algorithms.source_metrics import source_metrics
from accord.batch import TokenBatch
from accord.config import PolicyGradient, RolloutAlgorithm
from accord.ops.kl import kl_per_token
from accord.ops.masking import sum_per_sequence, targets_per_sequence
from accord.ops.statistics import RunningMoments, SumOverRanks, moments, one_rank
from accord.types import Rollout


def rollout_batch(rollouts: Sequence[Rollout], scored: bool = True) -> TokenBatch:
    """Prompt and response of each rollout end to end; the response tokens (or `learnt_ids` of them) are the targets. With
    `scored`, each has a score.

    Raises:
        ValueError: a rollout has no score, an empty response, or not one log-probability (or token score, or mark of what is to
            be learnt, if it has any) for each response token.
    """
    for index, rollout in enumerate(rollouts):
        if scored and rollout.score is None:
            raise ValueError(f"rollout {index} has no score")
        if not rollout.response_ids:
            raise ValueError(f"rollout {index} has an empty response; a response has at least one token, its end")
        if len(rollout.sampler_logprobs) != len(rollout.response_ids):
            raise ValueError(
                f"rollout {index} has {len(rollout.response_ids)} response tokens and "
                f"{len(rollout.sampler_logprobs)} log-probabilities"
            )
        if rollout.token_scores is not None and len(rollout.token_scores) != len(rollout.response_ids):
            raise ValueError(
                f"rollout {index} has {len(rollout.response_ids)} response tokens and {len(rollout.token_scores)} token scores"
            )
        if rollout.learnt_ids is not None and len(rollout.learnt_ids) != len(rollout.response_ids):
            raise ValueError(
                f"rollout {index} has {len(rollout.response_ids)} response tokens and "
                f"{len(rollout.learnt_ids)} marks of what is learnt"
            )
    sampler = [x for r in rollouts for x in (*([0.0] * len(r.prompt_ids)), *r.sampler_logprobs)]
    return TokenBatch.from_sequences(
        [r.prompt_ids + r.response_ids for r in rollouts],
        [[False] * len(r.prompt_ids) + list(r.learnt_ids or [True] * len(r.response_ids)) for r in rollouts],
        sampler_logprobs_T=torch.tensor(sampler, dtype=torch.float32),
        scores_N=torch.tensor([r.score for r in rollouts], dtype=torch.float32) if scored else None,
        group_N=torch.tensor([r.group for r in rollouts]),
        version_N=torch.tensor([r.version for r in rollouts]),
    )


def token_scores(rollouts: Sequence[Rollout]) -> Tensor | None:
    """Scores of single tokens in the layout of `rollout_batch`: float32 [T], 0 where there are none; `None` if there are none."""
    if all(rollout.token_scores is None for rollout in rollouts):
        return None
    rows = [(0.0,) * len(r.prompt_ids) + (r.token_scores or (0.0,) * len(r.response_ids)) for r in rollouts]
    return torch.tensor([score for row in rows for score in row], dtype=torch.float32)


def shape_scores(
    batch: TokenBatch,
    rollouts: Sequence[Rollout],
    config: PolicyGradient,
    seen: RunningMoments,
    sum_over_ranks: SumOverRanks = one_rank,
    penalties_N: Tensor | None = None,
) -> Tensor:
    """Scores as the advantages see them: penalties, scale, running normalisation, clip; float32 [N].

    Args:
        batch: with `scores_N`.
        rollouts: the same ones; their finish reasons are read.
        config: says which are wanted, and how much.
        seen: mean and variance of all scores so far; this batch is taken in first.
        sum_over_ranks: for these statistics.
        penalties_N: of the algorithm, subtracted first, beside that for a missing end; float32 [N].
    """
    assert batch.scores_N is not None
    scores_N = batch.scores_N if penalties_N is None else batch.scores_N - penalties_N
    scores_N = _scaled(scores_N, rollouts, config)
    if config.reward_normalize:
        seen.update(scores_N, sum_over_ranks)
    return _bounded(scores_N, config, seen)


def shape_alike(rollouts: Sequence[Rollout], config: PolicyGradient, seen: RunningMoments) -> Tensor:
    """Scores of other rollouts, those of their tokens included, shaped as those of the batch were, whose statistics they do not
    change; float32 [N]."""
    scores_N = torch.tensor([rollout.score for rollout in rollouts], dtype=torch.float32)
    of_tokens_N = torch.tensor([sum(rollout.token_scores or ()) for rollout in rollouts], dtype=torch.float32)
    return _bounded(_scaled(scores_N, rollouts, config), config, seen) + config.reward_scale * of_tokens_N


def _scaled(scores_N: Tensor, rollouts: Sequence[Rollout], config: PolicyGradient) -> Tensor:
    if config.missing_eos_penalty:
        unfinished_N = torch.tensor([float(rollout.finish_reason != "stop") for rollout in rollouts])
        scores_N = scores_N - config.missing_eos_penalty * unfinished_N
    return scores_N * config.reward_scale


def _bounded(scores_N: Tensor, config: PolicyGradient, seen: RunningMoments) -> Tensor:
    if config.reward_normalize:
        scores_N = (scores_N - seen.mean) / seen.std
    if config.reward_clip is not None:
        scores_N = scores_N.clamp(-config.reward_clip, config.reward_clip)
    return scores_N


def rollout_metrics(
    batch: TokenBatch, rollouts: Sequence[Rollout], sum_over_ranks: SumOverRanks = one_rank
) -> dict[str, float]:
    """Scores, KL to the reference, lengths, and how far sampler and trainer disagree; of these what the batch has streams for."""

    def spread(values_N: Tensor) -> tuple[float, float]:
        _, mean, variance = moments(values_N, torch.ones_like(values_N, dtype=torch.bool), sum_over_ranks)
        return float(mean), float(variance.sqrt())

    lengths_N = targets_per_sequence(batch)
    stopped_N = torch.tensor([float(rollout.finish_reason == "stop") for rollout in rollouts])
    metrics = {
        "sampling/length_mean": spread(lengths_N)[0],
        "sampling/length_max": float(lengths_N.max()),
        "sampling/finished_fraction": spread(stopped_N)[0],
    }
    if batch.scores_N is not None:
        of_tokens_T = token_scores(rollouts)
        totals_N = batch.scores_N if of_tokens_T is None else batch.scores_N + sum_per_sequence(of_tokens_T, batch)
        metrics["env/reward_mean"], metrics["env/reward_std"] = spread(totals_N)
    if batch.old_logprobs_T is not None and batch.ref_logprobs_T is not None:
        kl_N = sum_per_sequence(kl_per_token(batch.old_logprobs_T, batch.ref_logprobs_T, "k1"), batch)
        metrics["objective/kl"] = spread(kl_N)[0]
    if batch.old_logprobs_T is not None and batch.sampler_logprobs_T is not None:
        difference_T = (batch.old_logprobs_T - batch.sampler_logprobs_T).abs().masked_fill(~batch.target_mask_T, 0.0)
        metrics |= {
            "sampling/logprob_difference_max": float(difference_T.max()),
            "sampling/logprob_difference_mean": float(moments(difference_T, batch.target_mask_T, sum_over_ranks)[1]),
        }
    return metrics | source_metrics(rollouts, sum_over_ranks)


class UsesRollouts:
    """How an algorithm uses a batch of rollouts: in so many passes, of so many steps, by the policy.

    Args:
        config: says how many.
        temperature: at which responses are sampled, and log-probabilities compared.
        sum_over_ranks: for statistics over the whole batch.
    """

    uses_dropout = False

    def __init__(
        self, config: RolloutAlgorithm, temperature: float = 1.0, sum_over_ranks: SumOverRanks = one_rank
    ) -> None:
        self.usage, self.temperature, self.sum_over_ranks = config, temperature, sum_over_ranks

    def mean(self, values_N: Tensor) -> float:
        """Mean over all sequences of all ranks."""
        return float(moments(values_N, torch.ones_like(values_N, dtype=torch.bool), self.sum_over_ranks)[1])

    def minibatches(self, batch: TokenBatch, generator: torch.Generator) -> Iterator[TokenBatch]:
        """`epochs` passes, each over all sequences in a new order, cut into `minibatches` steps."""
        for _ in range(self.usage.epochs):
            order = torch.randperm(batch.sequences, generator=generator)
            for members in order.tensor_split(self.usage.minibatches):
                yield batch.select(members.tolist())

    def roles(self) -> tuple[RoleUpdate, ...]:
        """The policy learns."""
        return (RoleUpdate("policy", entropy=True),)
