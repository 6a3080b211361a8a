from __future__ import annotations

import random

import pytest
import torch

from accord.batch import TokenBatch
from accord.ops.masking import last_targets, masked_sum, sum_per_sequence, targets_per_sequence


def ragged(seed: int) -> TokenBatch:
    draw = random.Random(seed)
    lengths = [draw.randint(2, 9) for _ in range(7)]
    masks = [[False, True] + [draw.random() < 0.5 for _ in range(length - 2)] for length in lengths]
    return TokenBatch.from_sequences([[1] * length for length in lengths], masks)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_masked_values_do_not_count_and_get_no_gradient(garbage):
    values = torch.tensor([1.0, garbage, 4.0], requires_grad=True)
    total = masked_sum(values, torch.tensor([True, False, True]))
    total.backward()
    assert total.item() == 5.0
    assert values.grad.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("seed", range(5))
def test_sums_and_counts_of_sequences_equal_a_loop(seed):
    batch = ragged(seed)
    values = torch.randn(batch.tokens, generator=torch.Generator().manual_seed(seed))
    bounds, mask = batch.cu_seqlens.tolist(), batch.target_mask_T.tolist()
    rows = [[t for t in range(bounds[n], bounds[n + 1]) if mask[t]] for n in range(batch.sequences)]
    expected = torch.tensor([sum(values[t].item() for t in row) for row in rows])
    values[~batch.target_mask_T] = float("nan")
    torch.testing.assert_close(sum_per_sequence(values, batch), expected, rtol=1e-6, atol=1e-6)
    assert targets_per_sequence(batch).tolist() == [len(row) for row in rows]
    assert last_targets(batch).tolist() == [row[-1] for row in rows]


def test_sum_per_sequence_sends_each_token_the_gradient_of_its_own_sequence():
    batch = TokenBatch.from_sequences([[1, 2, 3], [4, 5]], [[False, True, True], [False, True]])
    values = torch.tensor([float("nan"), 1.0, 2.0, float("inf"), 3.0], requires_grad=True)
    (sum_per_sequence(values, batch) * torch.tensor([10.0, 20.0])).sum().backward()
    assert values.grad.tolist() == [0.0, 10.0, 10.0, 0.0, 20.0]


def test_sequence_without_targets_counts_0_and_has_no_last_one():
    batch = TokenBatch.from_sequences([[1, 2], [3, 4]], [[False, True], [False, False]])
    assert targets_per_sequence(batch).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="sequence 1 has no target token"):
        last_targets(batch)


def test_last_target_is_not_the_last_token_when_that_is_no_target():
    batch = TokenBatch.from_sequences([[1, 2, 3, 4], [5, 6]], [[False, True, True, False], [False, True]])
    assert last_targets(batch).tolist() == [2, 5]
