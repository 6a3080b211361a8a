"""Leave-one-out and group-relative advantages: by hand, by identity, against loops."""

from __future__ import annotations

import statistics

import pytest
import torch

from accord.batch import TokenBatch
from accord.ops.advantages import (
    decoupled,
    gae,
    group_relative,
    group_spread,
    leave_one_out,
    returns_to_go,
    spread_over_tokens,
)


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


def each(scores, groups, weights=None, applies=None):
    scores = torch.tensor(scores)
    applies = torch.ones_like(scores, dtype=torch.bool) if applies is None else torch.tensor(applies)
    return decoupled(scores, applies, torch.tensor(weights or [1.0] * len(scores)), torch.tensor(groups))


def test_decoupled_by_hand():
    # rewards 0, 0, 1 and 0, 2, 2 of one group of three.
    # first: mean 1/3, deviation 1/sqrt(3): -0.5774, -0.5774, 1.1547.
    # second: mean 4/3, deviation 2/sqrt(3): -1.1547, 0.5774, 0.5774
    # sums -1.7321, 0, 1.7321: mean 0, deviation sqrt(3): -1, 0, 1
    assert each([[0.0, 0.0, 1.0], [0.0, 2.0, 2.0]], [0, 0, 0]).tolist() == pytest.approx([-1.0, 0.0, 1.0], abs=5e-4)
    # weights 1 and 3: -0.5774 - 3.4641, -0.5774 + 1.7321, 1.1547 + 1.7321 = -4.0415, 1.1547, 2.8868; deviation sqrt(13)
    weighted = each([[0.0, 0.0, 1.0], [0.0, 2.0, 2.0]], [0, 0, 0], [1.0, 3.0])
    assert weighted.tolist() == pytest.approx([-1.1209, 0.3203, 0.8006], abs=5e-4)


def test_decoupled_tells_apart_what_a_sum_does_not():
    """The point of the paper (section 3): with two answers each, (0, 1) and (0, 2) get the same advantages from a sum."""
    scores, groups = [[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]], [0, 0, 1, 1]
    together = group_relative(torch.tensor(scores).sum(0), torch.tensor(groups))
    assert together[1] == pytest.approx(float(together[3]), abs=1e-3)
    apart = each(scores, groups)
    assert apart[3] > 1.5 * apart[1] > 0


def test_no_reward_drowns_another():
    scores, groups = torch.randn(2, 12, generator=torch.Generator().manual_seed(0)), [0] * 6 + [1] * 6
    louder = scores * torch.tensor([[1.0], [1000.0]]) + 50
    assert torch.allclose(each(scores.tolist(), groups), each(louder.tolist(), groups), atol=2e-3)


def test_decoupled_equals_a_loop_where_rewards_do_not_apply_to_all():
    generator = torch.Generator().manual_seed(2)
    scores, weights = torch.randn(3, 20, generator=generator) * 4 + 7, [0.5, -1.0, 2.0]
    groups = torch.arange(5).repeat_interleave(4).tolist()
    applies = torch.rand(3, 20, generator=generator) < 0.6
    sums = [0.0] * 20
    for r, weight in enumerate(weights):
        for i in range(20):
            if applies[r, i]:
                members = [float(scores[r, j]) for j in range(20) if groups[j] == groups[i] and applies[r, j]]
                deviation = statistics.stdev(members) if len(members) > 1 else 0.0
                sums[i] += weight * (float(scores[r, i]) - statistics.mean(members)) / (deviation + 1e-4)
    mean, deviation = statistics.mean(sums), statistics.stdev(sums)
    expected = [(value - mean) / (deviation + 1e-4) for value in sums]
    unread = scores.masked_fill(~applies, 1e9)
    actual = each(unread.tolist(), groups, weights, applies.tolist())
    assert actual.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_decoupled_over_two_ranks_is_that_of_one():
    generator = torch.Generator().manual_seed(3)
    scores, groups = torch.randn(2, 8, generator=generator), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    ones, weights = torch.ones(2, 8, dtype=torch.bool), torch.tensor([1.0, 1.0])
    whole = decoupled(scores, ones, weights, groups)
    summed = [
        sum(float(w) * group_relative(s[half], groups[half]) for s, w in zip(scores, weights, strict=True))
        for half in (slice(0, 4), slice(4, 8))
    ]  # what each rank has before it talks to the other
    both = torch.cat(summed).double()
    replies = iter([torch.tensor(8.0).double(), both.sum(), (both - both.mean()).square().sum()])
    first = decoupled(scores[:, :4], ones[:, :4], weights, groups[:4], lambda mine: next(replies))
    assert torch.allclose(first, whole[:4], atol=1e-6)


def test_a_reward_that_applies_to_nobody_adds_nothing():
    both = each([[0.0, 1.0], [9.0, 9.0]], [0, 0], applies=[[True, True], [False, False]])
    assert torch.equal(both, each([[0.0, 1.0]], [0, 0]))


def test_spread_of_a_group_by_hand():
    scores = torch.tensor([1.0, -3.0, 4.0, 9.0, -2.5, 7.0, 7.0])
    groups = torch.tensor([5, 2, 5, 5, 2, 8, 8])
    applies = torch.tensor([True, True, True, False, True, False, False])
    assert group_spread(scores, groups, applies).tolist() == [3.0, 0.5, 3.0, 3.0, 0.5, 0.0, 0.0]
