from __future__ import annotations

import dataclasses

import pytest
import torch

from accord.algorithms.rollouts import rollout_batch, rollout_metrics
from accord.types import Rollout

FIRST = Rollout(
    (1, 2), (3, 4), (-1.0, -2.0), "stop", "p", "r", group=5, version=7, score=1.0, scores={"a": 2.0, "b": None}
)
SECOND = Rollout((9,), (8,), (-0.5,), "length", "p", "r", group=6, version=8, score=-0.5, scores={"a": 4.0, "b": 3.0})


def test_layout_by_hand():
    batch = rollout_batch([FIRST, SECOND])
    assert batch.input_ids_T.tolist() == [1, 2, 3, 4, 9, 8]
    assert batch.target_mask_T.tolist() == [False, False, True, True, False, True]
    assert batch.cu_seqlens.tolist() == [0, 4, 6]
    assert batch.sampler_logprobs_T.tolist() == [0, 0, -1.0, -2.0, 0, -0.5]
    assert batch.scores_N.tolist() == [1.0, -0.5]
    assert batch.group_N.tolist() == [5, 6] and batch.version_N.tolist() == [7, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": None}, "rollout 1 has no score"),
        ({"response_ids": (), "sampler_logprobs": ()}, "rollout 1 has an empty response"),
        ({"sampler_logprobs": (-0.5, -0.1)}, "rollout 1 has 1 response tokens and 2 log-probabilities"),
        ({"prompt_ids": ()}, "sequence 1: its first token is a target"),
    ],
)
def test_rollouts_that_cannot_be_learnt_from_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        rollout_batch([FIRST, dataclasses.replace(SECOND, **change)])


def test_log_probabilities_do_not_slip_from_one_rollout_into_the_next():
    # One too many here and one too few there add up to the right total.
    longer = dataclasses.replace(FIRST, sampler_logprobs=(-1.0, -2.0, -3.0))
    shorter = dataclasses.replace(SECOND, response_ids=(8, 8), sampler_logprobs=(-0.5,))
    with pytest.raises(ValueError, match="rollout 0 has 2 response tokens and 3 log-probabilities"):
        rollout_batch([longer, shorter])


def test_a_score_of_zero_is_a_score():
    assert rollout_batch([dataclasses.replace(FIRST, score=0.0)]).scores_N.tolist() == [0.0]


def test_metrics_by_hand():
    batch = rollout_batch([FIRST, SECOND]).with_streams(
        old_logprobs_T=torch.tensor([0, 0, -1.25, -2.0, 0, -0.5]),
        ref_logprobs_T=torch.tensor([0, 0, -1.0, -1.0, 0, -2.5]),
    )
    assert rollout_metrics(batch, [FIRST, SECOND]) == pytest.approx(
        {
            "env/reward_mean": 0.25,
            "env/reward_std": 0.75,
            "objective/kl": 0.375,  # ((-0.25 - 1) + 2) / 2
            "sampling/length_mean": 1.5,
            "sampling/length_max": 2.0,
            "sampling/finished_fraction": 0.5,
            "sampling/logprob_difference_max": 0.25,
            "sampling/logprob_difference_mean": 0.25 / 3,
            "env/reward/a": 3.0,
            "env/reward/b": 3.0,  # of the one it applies to
            "env/reward_none/b": 0.5,
        },
        rel=1e-6,
    )


def test_kl_to_the_reference_is_exactly_0_when_both_are_the_same_model():
    batch = rollout_batch([FIRST, SECOND])
    logprobs = torch.tensor([0, 0, -1.3, -0.7, 0, -3.1])
    metrics = rollout_metrics(batch.with_streams(old_logprobs_T=logprobs, ref_logprobs_T=logprobs), [FIRST, SECOND])
    assert metrics["objective/kl"] == 0.0


def test_a_source_that_never_applies_has_no_mean():
    rollouts = [dataclasses.replace(rollout, scores={"a": 1.0, "b": None}) for rollout in (FIRST, SECOND)]
    batch = rollout_batch(rollouts)
    batch = batch.with_streams(old_logprobs_T=batch.sampler_logprobs_T, ref_logprobs_T=batch.sampler_logprobs_T)
    metrics = rollout_metrics(batch, rollouts)
    assert metrics["env/reward/a"] == 1.0 and "env/reward/b" not in metrics, "0 would be a number nobody measured"
