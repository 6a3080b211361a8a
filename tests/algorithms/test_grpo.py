"""GRPO: what is learnt of responses that were cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from accord.algorithms import GRPO, Denominators
from accord.batch import TokenBatch
from accord.config import GRPOConfig, KLConfig
from accord.model.forward import Outputs
from accord.ops.statistics import one_rank
from accord.types import Rollout
from algorithms.test_ppo import Says, rollout
from recipes.tiny_runs import run

LONGEST = 4
GROUPS = [
    rollout(1, [-1.0, -2.0], 1.0, group=0),
    rollout(1, [-0.5, -1.5, -0.25, -1.0], 0.0, "length", group=0),
    rollout(2, [-0.75], -1.0, group=1),
    rollout(2, [-1.25, -0.5, -2.0], 3.0, group=1),
    rollout(2, [-0.25, -0.5, -1.0, -3.0], 2.0, "length", group=1),
]
"""Two groups, each with a response that was cut."""


def prepared(items: list[Rollout], **options: Any) -> tuple[TokenBatch, dict[str, float]]:
    """Sampler and trainer agree; the reference does not."""
    logprobs = [x for r in items for x in (*([0.0] * len(r.prompt_ids)), *r.sampler_logprobs)]
    reference = [x - 0.1 * n if x else 0.0 for n, x in enumerate(logprobs)]
    algorithm = GRPO(GRPOConfig(**options), longest=LONGEST)
    return algorithm.prepare(items, Says(old_logprobs_T=logprobs, ref_logprobs_T=reference))


def learnt(batch: TokenBatch, moved_T: Tensor, **options: Any) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient and metrics of one step whose micro-batches are two sequences each."""
    algorithm = GRPO(GRPOConfig(**options), longest=LONGEST)
    denominators = Denominators.of(batch, one_rank)
    total, gradient, sums = 0.0, torch.zeros(batch.tokens), {}
    assert batch.old_logprobs_T is not None
    for start in range(0, batch.sequences, 2):
        members = list(range(start, min(start + 2, batch.sequences)))
        places = batch.token_index(members)
        now = (batch.old_logprobs_T + moved_T)[places].requires_grad_()
        outputs = Outputs(now, torch.ones(len(places)).masked_fill(~batch.target_mask_T[places], 0.0))
        loss, metrics = algorithm.loss("policy", outputs, batch.select(members), denominators)
        total += loss.item()
        gradient[places] = torch.autograd.grad(loss, now)[0]
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in metrics.items()}
    return total, gradient, sums


@pytest.mark.parametrize("aggregate", ["sequence", "token", "constant"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_nothing_is_learnt_of_cut_responses_as_if_the_step_had_none(aggregate: str, ratio: str) -> None:
    options = {"aggregate": aggregate, "ratio": ratio, "kl": KLConfig(use="loss", estimator="k3", coef=0.5)}
    batch, _ = prepared(GROUPS, mask_truncated=True, **options)
    moved_T = 0.3 * torch.sin(torch.arange(batch.tokens))
    loss, gradient, metrics = learnt(batch, moved_T, **options)
    finished = [0, 2, 3]
    places = batch.token_index(finished)
    alone = batch.select(finished)
    expected, expected_gradient, _ = learnt(alone.with_streams(learnt_N=None), moved_T[places], **options)
    assert loss == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient[places], expected_gradient)
    assert gradient[batch.token_index([1, 4])].abs().max() == 0
    assert (gradient[places][alone.target_mask_T] != 0).all()
    assert metrics["objective/entropy"] == pytest.approx(1.0), "of all tokens, learnt from or not"
    assert learnt(batch.with_streams(learnt_N=None), moved_T, **options)[0] != pytest.approx(expected, rel=0.01)


def test_groups_are_compared_with_their_cut_responses() -> None:
    """Scores 1, 0 | -1, 3, 2 with means 1/2 | 4/3."""
    batch, metrics = prepared(GROUPS, mask_truncated=True, scale="none")
    assert batch.learnt_N.tolist() == [True, False, True, True, False]
    of_response = [float(batch.advantages_T[batch.token_index([n])][-1]) for n in range(5)]
    assert of_response == pytest.approx([0.5, -0.5, -7 / 3, 5 / 3, 2 / 3])
    assert metrics["ppo/advantages/std"] == pytest.approx((sum(a * a for a in of_response) / 5) ** 0.5)
    assert prepared(GROUPS)[0].learnt_N is None


def test_the_length_penalty_by_hand() -> None:
    """Lengths 2, 4 | 1, 3, 4 of at most 4, of which the last 2 cost: 0, 1 | 0, 1/2, 1."""
    batch, metrics = prepared(GROUPS, overlong=2, scale="none", reward_scale=2.0)
    of_response = [float(batch.advantages_T[batch.token_index([n])][-1]) for n in range(5)]
    # scores 1, -1 | -1, 2.5, 1, doubled; their means 0 | 5/3
    assert of_response == pytest.approx([2, -2, -11 / 3, 10 / 3, 1 / 3])
    assert metrics["env/reward_mean"] == pytest.approx(1.0), "as it came from the sources"
    assert metrics["env/reward_std"] == pytest.approx(2**0.5)
    assert metrics["ppo/mean_scores"] == pytest.approx(2 * (5 - 2.5) / 5)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_only_groups_of_one_score_are_equal(scale: str) -> None:
    """A response at its group's mean teaches nothing, but its group does."""
    scores = [[0.0, 1.0, 2.0], [0.3, 0.3, 0.3], [1e9, 1e9 + 64, 1e9]]
    items = [rollout(1, [-1.0], score, group=n) for n, group in enumerate(scores) for score in group]
    assert prepared(items, scale=scale)[1]["grpo/equal_groups"] == pytest.approx(1 / 3)


def test_where_each_source_is_normalised_an_equal_group_has_one_score_of_each() -> None:
    """Sources a and b, and one of weight 0 that differs everywhere."""
    groups = [[(1, 0), (0, 1)], [(1, 1), (1, 1)], [(None, 2), (3, 2)], [(None, 2), (None, 3)]]
    items = [
        rollout(1, [-1.0], 0.0, group=n, scores={"a": a, "b": b, "watched": float(k)})
        for n, group in enumerate(groups)
        for k, (a, b) in enumerate(group)
    ]
    algorithm = GRPO(GRPOConfig(normalize_each=True), weights={"a": 1.0, "b": 2.0, "watched": 0.0})
    zeros = torch.zeros(2 * len(items))
    _, metrics = algorithm.prepare(items, Says(old_logprobs_T=zeros, ref_logprobs_T=zeros))
    assert metrics["grpo/equal_groups"] == 0.5
    algorithm = GRPO(GRPOConfig(normalize_each=True), weights={"watched": 0.0})
    _, metrics = algorithm.prepare(items, Says(old_logprobs_T=zeros, ref_logprobs_T=zeros))
    assert metrics["grpo/equal_groups"] == 1, "sources that are only watched teach nothing"


def test_a_step_of_cut_responses_alone_moves_nothing() -> None:
    batch, _ = prepared([GROUPS[1], GROUPS[4]], mask_truncated=True)
    loss, gradient, _ = learnt(batch, torch.full((batch.tokens,), 0.5))
    assert loss == 0 and not gradient.any()
    algorithm = GRPO(GRPOConfig(mask_truncated=True))
    assert algorithm.veto({"ppo/policy/ratio_mean": 0.0, "tokens/trained": 0.0}) == "no response ended"
    assert algorithm.veto({"ppo/policy/ratio_mean": 1.0, "tokens/trained": 5.0}) is None
    assert algorithm.veto({"ppo/policy/ratio_mean": 99.0, "tokens/trained": 5.0}) is not None


def test_counts_of_a_step_tell_what_is_learnt() -> None:
    batch, _ = prepared(GROUPS, mask_truncated=True)
    counts = Denominators.of(batch, lambda tensor: 2 * tensor).to(torch.device("cpu"))
    assert [int(x) for x in (counts.tokens, counts.sequences, counts.idle_tokens, counts.idle_sequences)] == [
        28,
        10,
        16,
        4,
    ]
    assert int(counts.learnt.tokens) == 12 and int(counts.learnt.sequences) == 6


def test_a_run_learns_from_the_tokens_of_finished_responses_alone(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    over = {
        "algorithm": {"mask_truncated": True, "epochs": 1, "minibatches": 1},
        "rollout": {"max_new_tokens": 24, "samples": 4, "stop": ["e"]},
        "train": {"batch_size": 16},
    }
    done = run("grpo", model_folder("llama"), tmp_path, over)
    finished = []
    for file, metrics in zip(sorted((done.path / "rollouts").iterdir()), done.metrics, strict=True):
        rows = parquet.read_table(file).to_pylist()
        finished.append(sum(row["finish_reason"] == "stop" for row in rows))
        assert metrics["tokens/trained"] == sum(row["length"] for row in rows if row["finish_reason"] == "stop")
    assert 0 < sum(finished) < 32
