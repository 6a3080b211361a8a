from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from accord.ops.statistics import RunningMoments, SumOverRanks, moments, whiten


def on_ranks(count: int, work: Callable[[int, SumOverRanks], Any]) -> list[Any]:
    """Run `work(rank, sum_over_ranks)` in one thread a rank; the sum waits for all, as a collective does."""
    barrier, given, results = threading.Barrier(count, timeout=20), [None] * count, [None] * count

    def run(rank: int) -> None:
        def sum_over_ranks(tensor: Tensor) -> Tensor:
            given[rank] = tensor
            barrier.wait()
            total = sum(given)
            barrier.wait()
            return total

        results[rank] = work(rank, sum_over_ranks)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(result is not None for result in results)
    return results


def ragged_ranks(seed: int, mean: float = 0.0) -> tuple[list[Tensor], list[Tensor]]:
    generator = np.random.default_rng(seed)
    sizes = [5, 17, 1]
    values = [torch.tensor(mean + generator.normal(size=size) * 3, dtype=torch.float64) for size in sizes]
    masks = [torch.tensor(generator.random(size) < 0.7) for size in sizes]
    masks[0][:2] = True
    return values, masks


def test_literals():
    # chosen 1, 2, 6: mean 3, variance (4 + 1 + 9) / 3 = 14/3
    count, mean, variance = moments(torch.tensor([1.0, 99.0, 2.0, 6.0]), torch.tensor([True, False, True, True]))
    assert (float(count), float(mean), float(variance)) == (3.0, 3.0, pytest.approx(14 / 3, rel=1e-15))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mean", [0.0, 1e8])
def test_moments_over_ranks_equal_numpy_on_the_concatenation(seed, mean):
    values, masks = ragged_ranks(seed, mean)
    everything = np.concatenate([value[mask].numpy() for value, mask in zip(values, masks, strict=True)])
    for count, got_mean, variance in on_ranks(3, lambda rank, add: moments(values[rank], masks[rank], add)):
        assert float(count) == len(everything)
        assert float(got_mean) == pytest.approx(everything.mean(), rel=1e-14, abs=1e-14)
        assert float(variance) == pytest.approx(everything.var(), rel=1e-10)


def test_a_large_mean_costs_no_digits_of_the_variance():
    # In float32 1e8 + 8 is the next number but one: values 1e8, 1e8 + 8, 1e8 + 16 have variance (64 + 0 + 64) / 3.
    values = torch.tensor([1e8, 1e8 + 8, 1e8 + 16])
    assert float(moments(values, torch.ones(3, dtype=torch.bool))[2]) == pytest.approx(128 / 3, rel=1e-12)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_masked_does_not_count(garbage):
    values, mask = torch.tensor([1.0, garbage, 3.0]), torch.tensor([True, False, True])
    assert [float(part) for part in moments(values, mask)] == [2.0, 2.0, 1.0]
    assert whiten(values, mask).tolist() == whiten(torch.tensor([1.0, 0.0, 3.0]), mask).tolist()
    assert float(whiten(values, mask)[1]) == 0.0


def test_nothing_counted_gives_zeros_not_nan():
    nothing = torch.zeros(3, dtype=torch.bool)
    assert [float(part) for part in moments(torch.ones(3), nothing)] == [0.0, 0.0, 0.0]
    assert whiten(torch.ones(3), nothing).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_over_ranks(seed, shift_mean):
    values, masks = ragged_ranks(seed, mean=5.0)
    parts = on_ranks(3, lambda rank, add: whiten(values[rank], masks[rank], shift_mean=shift_mean, sum_over_ranks=add))
    got = np.concatenate([part[mask].numpy() for part, mask in zip(parts, masks, strict=True)])
    everything = np.concatenate([value[mask].numpy() for value, mask in zip(values, masks, strict=True)])
    assert got.mean() == pytest.approx(0.0 if shift_mean else everything.mean(), abs=1e-13)
    assert got.var() == pytest.approx(1.0, rel=1e-8)  # var / (var + 1e-8)
    np.testing.assert_allclose(
        got - got.mean(), (everything - everything.mean()) / np.sqrt(everything.var() + 1e-8), rtol=1e-10, atol=1e-13
    )
    for part, mask in zip(parts, masks, strict=True):
        assert bool((part[~mask] == 0).all())


def test_whitening_keeps_the_type_and_survives_equal_values():
    values = torch.full((4,), 7.0)
    whitened = whiten(values, torch.ones(4, dtype=torch.bool))
    assert whitened.dtype == torch.float32 and whitened.tolist() == [0.0] * 4
    assert whiten(values, torch.ones(4, dtype=torch.bool), shift_mean=False).tolist() == [7.0] * 4


# --- running ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.0, 1e8])
def test_merging_batches_equals_all_at_once(mean):
    generator = np.random.default_rng(0)
    batches = [mean + generator.normal(loc=i, size=size) for i, size in enumerate([1, 4, 1, 30, 2])]
    running = RunningMoments()
    for batch in batches:
        running.update(torch.tensor(batch))
    everything = np.concatenate(batches)
    assert running.count == len(everything)
    assert running.mean == pytest.approx(everything.mean(), rel=1e-14)
    assert running.std == pytest.approx(everything.std(), rel=1e-7 if mean else 1e-13)


def test_running_literal():
    running = RunningMoments()
    running.update(torch.tensor([1.0, 3.0]))  # mean 2, squares 2
    running.update(torch.tensor([8.0]))  # mean 4, squares 2 + 0 + 6^2 * 2 * 1 / 3 = 26
    assert (running.count, running.mean, running.squares) == (3.0, pytest.approx(4.0), pytest.approx(26.0))
    assert running.std == pytest.approx((26 / 3) ** 0.5)


def test_running_over_ranks_equals_one_rank():
    values = [torch.tensor([1.0, 2.0]), torch.tensor([7.0]), torch.tensor([3.0, -4.0, 0.5])]
    alone = RunningMoments()
    alone.update(torch.cat(values))
    alone.update(torch.cat(values) * 2)

    def work(rank: int, add: SumOverRanks) -> RunningMoments:
        running = RunningMoments()
        running.update(values[rank], add)
        running.update(values[rank] * 2, add)
        return running

    for running in on_ranks(3, work):
        assert running.state_dict() == pytest.approx(alone.state_dict(), rel=1e-14)


def test_std_is_1_until_there_is_a_spread():
    running = RunningMoments()
    assert running.std == 1.0
    running.update(torch.tensor([]))
    assert running.count == 0 and running.std == 1.0
    running.update(torch.tensor([5.0]))
    assert running.std == 1.0
    running.update(torch.tensor([5.0]))
    assert running.std == 1.0
    running.update(torch.tensor([8.0]))
    assert running.std == pytest.approx(2**0.5)  # 5, 5, 8: mean 6, squares 1 + 1 + 4


def test_running_state_round_trip_through_json_is_exact():
    one, other = RunningMoments(), RunningMoments()
    one.update(torch.tensor([0.1, 0.7, -3.3]))
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    one.update(torch.tensor([1.1]))
    other.update(torch.tensor([1.1]))
    assert one.state_dict() == other.state_dict()
