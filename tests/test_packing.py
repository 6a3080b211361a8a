from __future__ import annotations

import math
import random
import time

import numpy
import pytest

from accord.layout import Layout
from accord.packing import (
    KEYS_PER_TOKEN,
    OWN_TO_SHARED,
    SHORTEST,
    best_fit_decreasing,
    even_bins,
    micro_batches,
    neighbours,
    worth_sharing,
)


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


# --- even bins -----------------------------------------------------------------------------------------------------------


def test_even_by_hand():
    # Best fit fills the first bin, 12 and 6. Each into the cheapest: 4 | 4, then 8 | 8, then 2.
    assert best_fit_decreasing([4, 4, 4, 4, 2], 12) == [[0, 1, 2], [3, 4]]
    assert even_bins([4, 4, 4, 4, 2], [4, 4, 4, 4, 2], 12) == [[0, 2, 4], [1, 3]]
    assert even_bins([4, 4, 4, 4, 2], [9, 4, 4, 4, 2], 12) == [[0, 4], [1, 2, 3]], "what counts is cost"


def test_where_even_bins_would_overflow_best_fit_counts():
    assert even_bins([6, 6, 4, 4], [1, 1, 9, 9], 10) == best_fit_decreasing([6, 6, 4, 4], 10) == [[0, 2], [1, 3]]
    assert even_bins([10, 5, 5], [1, 9, 9], 10) == [[0], [1, 2]]


def test_one_that_is_too_long_stays_alone_and_nothing_gives_nothing():
    assert even_bins([30, 2, 3], [30, 2, 3], 10) == [[0], [1, 2]]
    assert even_bins([], [], 10) == []


@pytest.mark.parametrize("seed", range(60))
def test_even_bins_are_as_many_and_never_costlier_than_best_fit(seed):
    draw = random.Random(seed)
    capacity = draw.randint(5, 60)
    sizes = [draw.randint(1, draw.choice([5, capacity, 2 * capacity])) for _ in range(draw.randint(1, 60))]
    costs = [size + size**2 / 30 * draw.random() for size in sizes]
    bins, tight = even_bins(sizes, costs, capacity), best_fit_decreasing(sizes, capacity)
    assert len(bins) == len(tight) and sorted(i for members in bins for i in members) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in members) <= capacity or len(members) == 1 for members in bins)

    def costliest(chosen):
        return max(sum(costs[i] for i in members) for members in chosen)

    assert costliest(bins) <= costliest(tight)
    assert bins == sorted((sorted(members) for members in bins), key=lambda members: members[0])


# --- what sequences have in common ---------------------------------------------------------------------------------------


def arrays(*sequences) -> list[numpy.ndarray]:
    return [numpy.array(sequence, dtype=numpy.int64) for sequence in sequences]


def test_neighbours_by_hand():
    order, common = neighbours(arrays([2, 1], [1, 300, 7], [1, 300], [1, 2, 2], [1, 300]))
    assert order == [3, 2, 4, 1, 0] and common == [0, 1, 2, 2, 0]
    assert neighbours([]) == ([], [])


@pytest.mark.parametrize("seed", range(40))
def test_no_earlier_one_has_more_in_common(seed):
    draw = random.Random(seed)
    sequences = [[draw.choice([1, 2, 2**33 + 1, 2**33 + 2]) for _ in range(draw.randint(1, 7))] for _ in range(12)]
    order, common = neighbours(arrays(*sequences))

    def alike(a, b):
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    assert [sequences[n] for n in order] == sorted(sequences)
    for place, tokens in enumerate(common):
        assert tokens == max((alike(sequences[order[place]], sequences[n]) for n in order[:place]), default=0)


def test_what_is_worth_sharing():
    assert worth_sharing(SHORTEST - 1, SHORTEST) == 0 and worth_sharing(SHORTEST, SHORTEST) == SHORTEST
    longest = SHORTEST + SHORTEST * OWN_TO_SHARED
    assert worth_sharing(SHORTEST, longest) == SHORTEST and worth_sharing(SHORTEST, longest + 1) == 0


# --- micro-batches -------------------------------------------------------------------------------------------------------


def conversation(draw: random.Random, prompts: int, samples: int, prompt: int = 150, answer: int = 64):
    """Groups of answers, in a random order, some of the prompts behind one system prompt."""
    system = [draw.randrange(1000) for _ in range(40)]
    made = []
    for number in range(prompts):
        start = (system if number % 2 else []) + [draw.randrange(1000) for _ in range(draw.randint(1, prompt))]
        made += [start + [draw.randrange(1000) for _ in range(draw.randint(1, answer))] for _ in range(samples)]
    draw.shuffle(made)
    return arrays(*made)


def computed(codes, members) -> int:
    return Layout.of([codes[n] for n in members]).tokens


def test_a_group_stays_together_and_its_prompt_counts_once():
    prompt, other = list(range(100)), list(range(500, 600))
    codes = arrays(*([*prompt, 1000 + n] for n in range(8)), *([*other, 2000 + n] for n in range(8)))
    shuffled = [codes[n] for n in (0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15)]
    assert micro_batches(shuffled, 108, shares=True) == [list(range(0, 16, 2)), list(range(1, 16, 2))]
    assert micro_batches(shuffled, 216, shares=True) == [list(range(16))]
    assert len(micro_batches(shuffled, 108)) == 16, "each with its own prompt"


def test_a_group_too_large_is_cut_evenly_and_repeats_its_prompt():
    codes = arrays(*([*range(100), *range(1000 * n, 1000 * n + 10)] for n in range(1, 9)))
    bins = micro_batches(codes, 170, shares=True)  # 7 answers would fit, so two micro-batches
    assert [len(members) for members in bins] == [4, 4] and [computed(codes, members) for members in bins] == [140, 140]
    assert [len(members) for members in micro_batches(codes, 5, shares=True)] == [1] * 8


def test_micro_batches_are_even():
    codes = arrays(*([*range(1000 * n, 1000 * n + 100)] for n in range(1, 6)))
    assert [len(members) for members in micro_batches(codes, 400)] == [3, 2], "and not 4 and 1"
    codes = arrays(range(KEYS_PER_TOKEN), *(range(10_000 * n, 10_000 * n + 64) for n in range(1, 65)))
    bins = micro_batches(codes, 4096)
    sizes = [sum(len(codes[n]) for n in members) for members in bins]
    assert sum(sizes) == 6144 and 400 < sizes[1] - sizes[0] < 1100, (
        "the long sequence's attention weighs, as 1,024 tokens do"
    )


@pytest.mark.parametrize("unit", [1, 2])
@pytest.mark.parametrize("seed", range(40))
def test_micro_batches_hold_the_limit_in_computed_tokens(seed, unit):
    draw = random.Random(seed)
    codes = conversation(draw, draw.randint(1, 8), 2 * draw.randint(1, 4))
    if unit == 2:
        codes = [code for _, code in sorted(enumerate(codes), key=lambda item: (item[1][:30].tolist(), item[0]))]
    capacity = draw.choice([50, 200, 400, 1000])
    bins = micro_batches(codes, capacity, unit=unit, shares=True)
    assert sorted(n for members in bins for n in members) == list(range(len(codes)))
    for members in bins:
        assert computed(codes, members) <= capacity or len(members) == unit
        assert members == sorted(members)
        assert unit == 1 or members == [n for first in members[::2] for n in (first - first % 2, first - first % 2 + 1)]
    assert [members[0] for members in bins] == sorted(members[0] for members in bins)
    assert bins == micro_batches(codes, capacity, unit=unit, shares=True)
    through = sum(computed(codes, members) for members in bins)
    whole = micro_batches(codes, capacity, unit=unit)
    assert through <= sum(computed(codes, members) for members in whole), "keeping them together shares no less"
    assert all(sum(len(codes[n]) for n in members) <= capacity or len(members) == unit for members in whole)


def test_ten_thousand_sequences_in_groups_take_no_quadratic_time():
    codes = conversation(random.Random(0), 1250, 8)
    started = time.process_time()
    bins = micro_batches(codes, 4096, shares=True)
    assert time.process_time() - started < 5
    assert sum(map(len, bins)) == 10_000
