"""What all algorithms that learn from rollouts share: the batch, and metrics of the sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accord.batch import TokenBatch
from accord.config import PPOConfig
from accord.ops.kl import kl_per_token
from accord.ops.masking import sum_per_sequence, targets_per_sequence
from accord.ops.statistics import RunningMoments, SumOverRanks, moments, one_rank
from accord.types import Rollout


def rollout_batch(rollouts: Sequence[Rollout]) -> TokenBatch:
    """Prompt and response of each rollout end to end; the response tokens are the targets.

    Raises:
        ValueError: a rollout has no score, an empty response, or not one log-probability for each response token.
    """
    for index, rollout in enumerate(rollouts):
        if rollout.score is None:
            raise ValueError(f"rollout {index} has no score")
        if not rollout.response_ids:
            raise ValueError(f"rollout {index} has an empty response; a response has at least one token, its end")
        if len(rollout.sampler_logprobs) != len(rollout.response_ids):
            raise ValueError(
                f"rollout {index} has {len(rollout.response_ids)} response tokens and "
                f"{len(rollout.sampler_logprobs)} log-probabilities"
            )
    sampler = [x for r in rollouts for x in (*([0.0] * len(r.prompt_ids)), *r.sampler_logprobs)]
    return TokenBatch.from_sequences(
        [r.prompt_ids + r.response_ids for r in rollouts],
        [[False] * len(r.prompt_ids) + [True] * len(r.response_ids) for r in rollouts],
        sampler_logprobs_T=torch.tensor(sampler, dtype=torch.float32),
        scores_N=torch.tensor([r.score for r in rollouts], dtype=torch.float32),
        group_N=torch.tensor([r.group for r in rollouts]),
        version_N=torch.tensor([r.version for r in rollouts]),
    )


def shape_scores(
    batch: TokenBatch,
    rollouts: Sequence[Rollout],
    config: PPOConfig,
    seen: RunningMoments,
    sum_over_ranks: SumOverRanks = one_rank,
) -> Tensor:
    """Scores as the advantages see them: penalty for a missing end, scale, running normalisation, clip; float32 [N].

    Args:
        batch: with `scores_N`.
        rollouts: the same ones; their finish reasons are read.
        config: says which of the four are wanted, and how much.
        seen: mean and variance of all scores so far; this batch is taken in first.
        sum_over_ranks: for these statistics.
    """
    assert batch.scores_N is not None
    scores_N = batch.scores_N
    if config.missing_eos_penalty:
        unfinished_N = torch.tensor([float(rollout.finish_reason != "stop") for rollout in rollouts])
        scores_N = scores_N - config.missing_eos_penalty * unfinished_N
    scores_N = scores_N * config.reward_scale
    if config.reward_normalize:
        seen.update(scores_N, sum_over_ranks)
        scores_N = (scores_N - seen.mean) / seen.std
    if config.reward_clip is not None:
        scores_N = scores_N.clamp(-config.reward_clip, config.reward_clip)
    return scores_N


def rollout_metrics(
    batch: TokenBatch, rollouts: Sequence[Rollout], sum_over_ranks: SumOverRanks = one_rank
) -> dict[str, float]:
    """Scores, KL to the reference, lengths, and how far sampler and trainer disagree."""

    def spread(values_N: Tensor) -> tuple[float, float]:
        _, mean, variance = moments(values_N, torch.ones_like(values_N, dtype=torch.bool), sum_over_ranks)
        return float(mean), float(variance.sqrt())

    assert batch.scores_N is not None and batch.old_logprobs_T is not None and batch.ref_logprobs_T is not None
    assert batch.sampler_logprobs_T is not None
    mean, std = spread(batch.scores_N)
    lengths_N = targets_per_sequence(batch)
    stopped_N = torch.tensor([float(rollout.finish_reason == "stop") for rollout in rollouts])
    difference_T = (batch.old_logprobs_T - batch.sampler_logprobs_T).abs().masked_fill(~batch.target_mask_T, 0.0)
    kl_N = sum_per_sequence(kl_per_token(batch.old_logprobs_T, batch.ref_logprobs_T, "k1"), batch)
    metrics = {
        "env/reward_mean": mean,
        "env/reward_std": std,
        "objective/kl": spread(kl_N)[0],
        "sampling/length_mean": spread(lengths_N)[0],
        "sampling/length_max": float(lengths_N.max()),
        "sampling/finished_fraction": spread(stopped_N)[0],
        "sampling/logprob_difference_max": float(difference_T.max()),
        "sampling/logprob_difference_mean": float(moments(difference_T, batch.target_mask_T, sum_over_ranks)[1]),
    }
    for label in rollouts[0].scores:
        values = [rollout.scores[label] for rollout in rollouts]
        applies = torch.tensor([value is not None for value in values])
        known_N = torch.tensor([0.0 if value is None else value for value in values])
        count, mean_known, _ = moments(known_N, applies, sum_over_ranks)
        if count > 0:
            metrics[f"env/reward/{label}"] = float(mean_known)
    return metrics
