"""The row cache, fed by hand."""

from __future__ import annotations

import torch

from accord.rollout.cache import RowCache

HEADS, SIZE = 2, 3


def tokens(*numbers: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed keys [1, heads, Q, D] that say which token they are of, and values that are their negatives."""
    keys = torch.tensor(numbers)[None, None, :, None].expand(1, HEADS, len(numbers), SIZE).clone()
    return keys, -keys


def prefill(cache: RowCache, *prompts: list[float]) -> None:
    cache.begin_prefill([len(prompt) for prompt in prompts])
    keys, values = tokens(*[number for prompt in prompts for number in prompt])
    for layer in (0, 1):
        seen_keys, seen_values = cache.update(keys, values, layer)
        assert torch.equal(seen_keys, keys) and torch.equal(seen_values, values), "attention sees the packed prompts"


def step(cache: RowCache, *numbers: float | list[float]) -> list:
    """New tokens for each row; returns what the row's query may see, or one such list for each of several queries."""
    rows = [number if isinstance(number, list) else [number] for number in numbers]
    layout = cache.begin_step(None if all(len(row) == 1 for row in rows) else [len(row) for row in rows])
    keys, values = tokens(*[number for row in rows for number in row])
    for layer in (0, 1):
        seen_keys, seen_values = cache.update(keys, values, layer)
        assert torch.equal(seen_keys, -seen_values) and seen_keys.shape[2] >= layout.width
        assert all(torch.equal(seen_keys[:, 0, :, 0], seen_keys[:, h, :, d]) for h in range(HEADS) for d in range(SIZE))
    sees = (layout.mask(None, torch.float32) == 0)[:, 0]
    found = [
        [seen_keys[row, 0, : layout.width][sees[row, q], 0].tolist() for q in range(len(rows[row]))]
        for row in range(len(rows))
    ]
    return [one if isinstance(number, list) else one[0] for one, number in zip(found, numbers, strict=True)]


def test_each_row_sees_its_prompt_and_what_followed() -> None:
    cache = RowCache(4, 8)
    assert cache.get_seq_length() == 0
    prefill(cache, [1, 2, 3], [10])
    assert (cache.active, cache.get_seq_length()) == (2, 3)
    assert step(cache, 4, 11) == [[1, 2, 3, 4], [10, 11]]
    prefill(cache, [20, 21])
    assert step(cache, 5, 12, 22) == [[1, 2, 3, 4, 5], [10, 11, 12], [20, 21, 22]]
    assert cache.lengths[: cache.active].tolist() == [5, 3, 3]


def test_a_dropped_row_gives_its_place_to_the_last() -> None:
    cache = RowCache(3, 8)
    prefill(cache, [1, 2, 3, 4], [10], [20, 21])
    assert cache.drop(0) == 2
    assert cache.active == 2
    assert step(cache, 22, 11) == [[20, 21, 22], [10, 11]]
    assert cache.drop(1) == 1
    assert step(cache, 23) == [[20, 21, 22, 23]]
    prefill(cache, [30])
    assert step(cache, 24, 31) == [[20, 21, 22, 23, 24], [30, 31]], "nothing of the old row is left"
    assert [cache.drop(0), cache.drop(0), cache.active] == [1, 0, 0]


def test_longer_sequences_make_it_grow_and_keep_what_it_holds() -> None:
    cache = RowCache(2, 2)
    prefill(cache, [1, 2])
    seen = [[1, 2]]
    for number in range(3, 12):
        seen[0] = [*seen[0], number]
        assert step(cache, number) == seen
    assert cache.columns == 16, "by doubling"
    prefill(cache, list(range(100, 140)))
    assert cache.columns == 40
    assert step(cache, 12, 140) == [[*seen[0], 12], list(range(100, 141))]


def test_a_prompt_may_begin_several_rows() -> None:
    cache = RowCache(5, 8)
    prefill(cache, [9])
    cache.begin_prefill([2, 3], owners=[1, 0, 1])
    keys, values = tokens(10, 11, 20, 21, 22)
    for layer in (0, 1):
        cache.update(keys, values, layer)
    assert step(cache, 1, 2, 3, 4) == [[9, 1], [20, 21, 22, 2], [10, 11, 3], [20, 21, 22, 4]]


def test_steps_of_several_tokens_and_taking_some_back() -> None:
    cache = RowCache(3, 4)
    prefill(cache, [10, 11], [20], [30, 31, 32])
    seen = step(cache, [12], [21, 22, 23], [33, 34])
    assert seen == [
        [[10, 11, 12]],
        [[20, 21], [20, 21, 22], [20, 21, 22, 23]],
        [[30, 31, 32, 33], [30, 31, 32, 33, 34]],
    ]
    cache.take_back([0, 2, 1])
    assert cache.lengths.tolist() == [3, 2, 4]
    assert step(cache, 13, 24, 35) == [[10, 11, 12, 13], [20, 21, 24], [30, 31, 32, 33, 35]]
    assert cache.drop(0) == 2
    assert step(cache, [36, 37], [25, 26]) == [
        [[30, 31, 32, 33, 35, 36], [30, 31, 32, 33, 35, 36, 37]],
        [[20, 21, 24, 25], [20, 21, 24, 25, 26]],
    ]
