from __future__ import annotations

import math
import random

import pytest

from accord.packing import best_fit_decreasing


def fewest_bins(lengths: list[int], capacity: int) -> int:
    """Try every assignment; only for a handful of items."""

    def search(index: int, rooms: list[int], best: int) -> int:
        if len(rooms) >= best:
            return best
        if index == len(lengths):
            return len(rooms)
        for i in range(len(rooms)):
            if rooms[i] >= lengths[index]:
                rooms[i] -= lengths[index]
                best = search(index + 1, rooms, best)
                rooms[i] += lengths[index]
        rooms.append(max(capacity - lengths[index], 0))
        best = search(index + 1, rooms, best)
        rooms.pop()
        return best

    return search(0, [], len(lengths) + 1)


def best_fit_naive(lengths: list[int], capacity: int) -> list[list[int]]:
    """The textbook loop: look at every bin for the least room that is enough; the older bin wins a tie."""
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rooms = [capacity - sum(lengths[i] for i in members) for members in bins]
        fitting = [b for b in range(len(bins)) if rooms[b] >= lengths[index]]
        if fitting:
            bins[min(fitting, key=lambda b: rooms[b])].append(index)
        else:
            bins.append([index])
    return sorted((sorted(members) for members in bins), key=lambda members: members[0])


def test_hand_example():
    # Longest first into 10: 7 | 6 | 4 -> the bin of 6 (room 4) | 3 -> the bin of 7 (room 3) | 2 -> a new bin.
    assert best_fit_decreasing([2, 4, 7, 3, 6], 10) == [[0], [1, 4], [2, 3]]


def test_the_tightest_bin_is_taken_not_the_first():
    # 6 (room 4), 5 (room 5), then 4: fits both, tighter in the bin of 6. Then 3 goes to the bin of 5.
    assert best_fit_decreasing([5, 6, 4, 3], 10) == [[0, 3], [1, 2]]


def test_full_bin_takes_exactly_its_capacity():
    assert best_fit_decreasing([5, 5, 5, 5], 10) == [[0, 1], [2, 3]]


def test_nothing_in_nothing_out():
    assert best_fit_decreasing([], 10) == []


def test_an_item_too_long_stands_alone():
    assert best_fit_decreasing([11, 1, 25, 9], 10) == [[0], [1, 3], [2]]


@pytest.mark.parametrize("seed", range(50))
def test_random_items_are_placed_once_within_capacity_in_order_and_as_the_textbook_does(seed):
    draw = random.Random(seed)
    capacity = draw.randint(1, 60)
    lengths = [draw.randint(1, draw.choice([5, capacity, 2 * capacity])) for _ in range(draw.randint(1, 80))]
    bins = best_fit_decreasing(lengths, capacity)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    for members in bins:
        assert sum(lengths[i] for i in members) <= capacity or len(members) == 1
        assert members == sorted(members)
    assert [members[0] for members in bins] == sorted(members[0] for members in bins)
    assert bins == best_fit_decreasing(lengths, capacity) == best_fit_decreasing(tuple(lengths), capacity)
    assert len(bins) == len(best_fit_naive(lengths, capacity))


@pytest.mark.parametrize("seed", range(40))
def test_number_of_bins_is_near_the_optimum(seed):
    draw = random.Random(1000 + seed)
    lengths = [draw.randint(1, 20) for _ in range(draw.randint(1, 9))]
    assert len(best_fit_decreasing(lengths, 20)) <= math.floor(11 / 9 * fewest_bins(lengths, 20) + 1)


def test_ten_thousand_items_take_no_quadratic_time():
    draw = random.Random(0)
    lengths = [draw.randint(1, 4096) for _ in range(10_000)]
    bins = best_fit_decreasing(lengths, 4096)
    assert len(bins) <= 11 / 9 * (sum(lengths) / 4096) + 2
