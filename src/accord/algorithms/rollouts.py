"""What all algorithms that learn from rollouts share: the batch, its rewards, metrics of the sampling, and what is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accord.algorithms.base import Denominators, Metrics, RoleUpdate
from accord.algorithms.source_metrics import source_metrics
from accord.batch import TokenBatch
from accord.config import RolloutAlgorithm
from accord.losses import kl_penalty
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.kl import AdaptiveKLController, FixedKLController, kl_per_token
from accord.ops.masking import last_targets, sum_per_sequence, targets_per_sequence
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
    config: RolloutAlgorithm,
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
    return metrics | source_metrics(rollouts, sum_over_ranks)


@dataclass(frozen=True)
class Scored:
    """Rollouts with their streams and rewards."""

    batch: TokenBatch
    """With `old_logprobs_T`, `ref_logprobs_T` and what else was wanted."""
    rewards_T: Tensor
    """The score at the last response token, and the KL penalty at each if it is part of the reward; float32 [T]."""
    scores_N: Tensor
    """Shaped scores alone; float32 [N]."""
    metrics: Metrics


class FromRollouts:
    """What an algorithm on rollouts keeps (KL coefficient, reward statistics, iterations prepared), and how it uses a batch.

    Args:
        config: how scores are shaped, and how many steps a batch is used for.
        temperature: at which responses are sampled, and log-probabilities compared.
        sum_over_ranks: for statistics over the whole batch.
    """

    uses_dropout = False

    def __init__(
        self, config: RolloutAlgorithm, temperature: float = 1.0, sum_over_ranks: SumOverRanks = one_rank
    ) -> None:
        self.shaping, self.temperature, self.sum_over_ranks = config, temperature, sum_over_ranks
        kl = config.kl
        self.controller = (
            FixedKLController(kl.coef) if kl.target is None else AdaptiveKLController(kl.coef, kl.target, kl.horizon)
        )
        self.reward_moments = RunningMoments()
        self.prepared = 0
        self.coef_used = kl.coef
        """The KL's weight in the iteration prepared last; the controller holds the next one's."""

    def score_rollouts(self, items: Sequence[Rollout], scorer: Scorer, *wanted: str) -> Scored:
        """Run the frozen passes, shape the scores, add the KL penalty, and let the controller react."""
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
        scores_N = shape_scores(batch, items, self.shaping, self.reward_moments, self.sum_over_ranks)
        metrics |= {
            "ppo/mean_scores": self.mean(scores_N),
            "ppo/mean_non_score_reward": self.mean(sum_per_sequence(penalty_T, batch)),
            "objective/kl_coef": self.controller.coef,
        }
        self.coef_used = self.controller.coef
        samples = float(self.sum_over_ranks(torch.tensor(float(batch.sequences))))
        self.controller.update(metrics["objective/kl"], int(samples))
        return Scored(batch, penalty_T.index_add(0, last_targets(batch), scores_N), scores_N, metrics)

    def mean(self, values_N: Tensor) -> float:
        """Mean over all sequences of all ranks."""
        return float(moments(values_N, torch.ones_like(values_N, dtype=torch.bool), self.sum_over_ranks)[1])

    def minibatches(self, batch: TokenBatch, generator: torch.Generator) -> Iterator[TokenBatch]:
        """`epochs` passes, each over all sequences in a new order, cut into `minibatches` steps."""
        for _ in range(self.shaping.epochs):
            order = torch.randperm(batch.sequences, generator=generator)
            for members in order.tensor_split(self.shaping.minibatches):
                yield batch.select(members.tolist())

    def roles(self) -> tuple[RoleUpdate, ...]:
        """The policy learns."""
        return (RoleUpdate("policy", entropy=True),)

    def kl_term(
        self, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The KL to the reference as a loss term, if the recipe wants it there."""
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
        )

    def veto(self, metrics: Metrics) -> str | None:
        """Skip a step whose mean ratio shows that the policy has left the rollouts behind."""
        ratio, guard = metrics.get("ppo/policy/ratio_mean"), self.shaping.ratio_guard
        if ratio is None or guard is None or ratio <= guard:
            return None
        return f"mean ratio {ratio:.1f} exceeds algorithm.ratio_guard {guard:g}"

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
