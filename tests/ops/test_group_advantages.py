"""Leave-one-out and group-relative advantages: by hand, by identity, against loops."""

from __future__ import annotations

import statistics

import pytest
import torch

from accord.batch import TokenBatch
from accord.ops.advantages import gae, group_relative, leave_one_out, returns_to_go, spread_over_tokens


def test_leave_one_out_by_hand():
    # group 7: scores 1, 4, 7: 1 - (4+7)/2 = -4.5; 4 - (1+7)/2 = 0; 7 - (1+4)/2 = 4.5.  group 2: 3, 5: -2, 2
    advantages = leave_one_out(torch.tensor([1.0, 3.0, 4.0, 5.0, 7.0]), torch.tensor([7, 2, 7, 2, 7]))
    assert advantages.tolist() == pytest.approx([-4.5, -2.0, 0.0, 2.0, 4.5])


def test_leave_one_out_needs_others():
    with pytest.raises(ValueError, match="response 1 is the only one"):
        leave_one_out(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 0]))


def test_group_relative_by_hand():
    # scores 1, 3: mean 2, standard deviation of n - 1: sqrt(2); A = -+1 / (1.41421 + 1e-4)
    advantages = group_relative(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]))
    assert advantages.tolist() == pytest.approx([-0.7070568, 0.7070568], rel=1e-5)
    assert group_relative(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]), "none").tolist() == [-1.0, 1.0]


def test_two_samples_of_grpo_are_half_of_rloo():
    # With n = 2: leave-one-out s1 - s2, group mean (s1 - s2) / 2.
    generator = torch.Generator().manual_seed(0)
    scores, groups = torch.randn(20, generator=generator), torch.arange(10).repeat_interleave(2)
    assert torch.allclose(2 * group_relative(scores, groups, "none"), leave_one_out(scores, groups), atol=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_relative_equals_a_loop(scale):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(24, generator=generator) * 5 + 100
    groups = torch.randint(5, (24,), generator=generator)
    everything = statistics.stdev(scores.tolist())
    expected = []
    for score, group in zip(scores.tolist(), groups.tolist(), strict=True):
        members = [s for s, g in zip(scores.tolist(), groups.tolist(), strict=True) if g == group]
        own = statistics.stdev(members) if len(members) > 1 else 0.0
        divisor = {"group": own + 1e-4, "batch": everything + 1e-4, "none": 1.0}[scale]
        expected.append((score - statistics.mean(members)) / divisor)
    assert group_relative(scores, groups, scale).tolist() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_equal_scores_teach_nothing():
    assert group_relative(torch.full((4,), 3.0), torch.tensor([0, 0, 1, 1])).tolist() == [0.0] * 4


def test_returns_to_go_are_sums_of_what_follows():
    batch = TokenBatch.from_sequences([[1, 2, 3, 4], [5, 6]], [[False, True, True, True], [False, True]])
    rewards = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0, 5.0])
    # gamma 0.5: 1 + 0.5 * (2 + 0.5 * 3) = 2.75; 2 + 1.5 = 3.5; 3; and 5
    assert returns_to_go(batch, rewards, 0.5).tolist() == [0.0, 2.75, 3.5, 3.0, 0.0, 5.0]
    assert torch.equal(returns_to_go(batch, rewards, 0.5), gae(batch, rewards, torch.zeros(6), 0.5, 1.0)[0])


def test_spreading_reaches_targets_alone():
    batch = TokenBatch.from_sequences([[1, 2], [3, 4, 5]], [[False, True], [False, False, True]])
    assert spread_over_tokens(torch.tensor([2.0, 3.0]), batch).tolist() == [0.0, 2.0, 0.0, 0.0, 3.0]
