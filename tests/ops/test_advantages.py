from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from accord.batch import TokenBatch
from accord.ops.advantages import gae


def ragged(seed: int) -> tuple[TokenBatch, Tensor, Tensor]:
    """Random lengths and masks with gaps (several turns); one sequence has no target at all."""
    draw = random.Random(seed)
    lengths = [draw.randint(2, 15) for _ in range(6)]
    masks = [[False] + [draw.random() < 0.6 for _ in range(length - 1)] for length in lengths]
    masks[3] = [False] * lengths[3]
    batch = TokenBatch.from_sequences([[1] * length for length in lengths], masks)
    generator = torch.Generator().manual_seed(seed)
    return batch, torch.randn(batch.tokens, generator=generator), torch.randn(batch.tokens, generator=generator)


def targets_by_sequence(batch: TokenBatch) -> list[list[int]]:
    bounds, mask = batch.cu_seqlens.tolist(), batch.target_mask_T.tolist()
    return [[t for t in range(bounds[n], bounds[n + 1]) if mask[t]] for n in range(batch.sequences)]


def naive(batch: TokenBatch, rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = sum_l (gamma lam)^l delta_(t+l), the infinite sum of the paper (equation 16), every term written out."""
    result = [0.0] * batch.tokens
    for targets in targets_by_sequence(batch):
        for i in range(len(targets)):
            for j in range(i, len(targets)):
                following = values[targets[j + 1]] if j + 1 < len(targets) else 0.0
                delta = rewards[targets[j]] + gamma * following - values[targets[j]]
                result[targets[i]] += (gamma * lam) ** (j - i) * delta
    return result


def test_three_tokens_by_hand():
    # gamma 0.9, lambda 0.5, values 0.5 1.0 1.5, rewards 1 0 2, from the end:
    # delta_3 = 2 - 1.5 = 0.5               A_3 = 0.5
    # delta_2 = 0 + 0.9 * 1.5 - 1.0 = 0.35  A_2 = 0.35 + 0.45 * 0.5 = 0.575
    # delta_1 = 1 + 0.9 * 1.0 - 0.5 = 1.4   A_1 = 1.4 + 0.45 * 0.575 = 1.65875
    batch = TokenBatch.from_sequences([[1, 2, 3, 4]], [[False, True, True, True]])
    rewards, values = torch.tensor([0, 1.0, 0.0, 2.0]), torch.tensor([0, 0.5, 1.0, 1.5])
    advantages, returns = gae(batch, rewards, values, gamma=0.9, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([0, 1.65875, 0.575, 0.5]), rtol=1e-6, atol=0)
    torch.testing.assert_close(returns, torch.tensor([0, 2.15875, 1.575, 2.0]), rtol=1e-6, atol=0)
    assert advantages.dtype == returns.dtype == torch.float32


def test_a_turn_of_the_user_in_between_is_skipped():
    # Targets at 1 and 3. A_3 = 4 - 1 = 3; delta_1 = 1 + 0.5 * 1 - 2 = -0.5 (V of token 3, not of token 2);
    # A_1 = -0.5 + 0.5 * 0.5 * 3 = 0.25. What stands at token 2 must not matter.
    batch = TokenBatch.from_sequences([[1, 2, 3, 4]], [[False, True, False, True]])
    rewards, values = torch.tensor([9.0, 1.0, float("nan"), 4.0]), torch.tensor([7.0, 2.0, float("inf"), 1.0])
    advantages, returns = gae(batch, rewards, values, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [0.0, 0.25, 0.0, 3.0]
    assert returns.tolist() == [0.0, 2.25, 0.0, 4.0]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.99, 0.95), (0.5, 1.0), (0.9, 0.0), (1.0, 1.0)])
def test_ragged_batches_equal_the_sum_written_out(seed, gamma, lam):
    batch, rewards, values = ragged(seed)
    advantages, returns = gae(batch, rewards, values, gamma, lam)
    expected = torch.tensor(naive(batch, rewards.tolist(), values.tolist(), gamma, lam))
    torch.testing.assert_close(advantages, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(returns, (expected + values) * batch.target_mask_T, rtol=1e-5, atol=1e-6)
    off = ~batch.target_mask_T
    assert bool((advantages[off] == 0).all()) and bool((returns[off] == 0).all())


@pytest.mark.parametrize("seed", range(5))
def test_lambda_1_gamma_1_is_the_monte_carlo_return_minus_the_value(seed):
    batch, rewards, values = ragged(seed)
    advantages, returns = gae(batch, rewards, values, 1.0, 1.0)
    for targets in targets_by_sequence(batch):
        for i, t in enumerate(targets):
            to_come = sum(rewards[later].item() for later in targets[i:])
            assert returns[t].item() == pytest.approx(to_come, abs=2e-6)
            assert advantages[t].item() == pytest.approx(to_come - values[t].item(), abs=2e-6)


@pytest.mark.parametrize("seed", range(5))
def test_lambda_0_is_the_one_step_error(seed):
    batch, rewards, values = ragged(seed)
    advantages, _ = gae(batch, rewards, values, 0.9, 0.0)
    for targets in targets_by_sequence(batch):
        for i, t in enumerate(targets):
            ahead = values[targets[i + 1]].item() if i + 1 < len(targets) else 0.0
            expected = rewards[t].item() + 0.9 * ahead - values[t].item()
            assert advantages[t].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_perfect_critic_leaves_no_advantage(seed):
    batch, rewards, values = ragged(seed)
    for targets in targets_by_sequence(batch):
        for i, t in enumerate(targets):
            values[t] = sum(0.9**j * rewards[later].item() for j, later in enumerate(targets[i:]))
    advantages, _ = gae(batch, rewards, values, 0.9, 0.7)
    assert float(advantages.abs().max()) < 1e-6


@pytest.mark.parametrize("changed", range(6))
def test_a_sequence_feels_no_other(changed):
    batch, rewards, values = ragged(1)
    before, returns_before = gae(batch, rewards, values, 0.99, 0.95)
    inside = batch.sequence_T == changed
    after, returns_after = gae(batch, rewards + 5.0 * inside, values - 3.0 * inside, 0.99, 0.95)
    assert torch.equal(before[~inside], after[~inside])
    assert torch.equal(returns_before[~inside], returns_after[~inside])
    if changed != 3:
        assert not torch.equal(before[inside], after[inside])


def test_more_reward_means_more_advantage_for_all_tokens_before_it():
    batch = TokenBatch.from_sequences([[1] * 4], [[False, True, True, True]])
    less, _ = gae(batch, torch.zeros(4), torch.zeros(4), 1.0, 0.95)
    more, _ = gae(batch, torch.tensor([0.0, 0, 0, 1]), torch.zeros(4), 1.0, 0.95)
    torch.testing.assert_close(more - less, torch.tensor([0, 0.9025, 0.95, 1.0]), rtol=1e-6, atol=0)


def test_higher_values_mean_less_advantage():
    batch = TokenBatch.from_sequences([[1, 2]], [[False, True]])
    assert gae(batch, torch.zeros(2), torch.tensor([0.0, 2.0]), 1.0, 0.95)[0].tolist() == [0.0, -2.0]
