"""Which items belong to which iteration: a pure function of seed and iteration."""

from __future__ import annotations

import pytest

from accord.training.stream import Stream, order_seed

ITEMS = list(range(10))


def test_a_batch_depends_on_seed_and_iteration_alone():
    forward, backward = Stream(ITEMS, 4, seed=3), Stream(ITEMS, 4, seed=3)
    in_order = [forward.batch(i) for i in range(20)]
    assert [backward.batch(i) for i in reversed(range(20))] == in_order[::-1]
    assert Stream(ITEMS, 4, seed=4).batch(0) != in_order[0]


def test_every_item_once_in_each_epoch_and_each_epoch_in_another_order():
    stream = Stream(ITEMS, 3, seed=0)
    drawn = [item for i in range(10) for item in stream.batch(i)]
    epochs = [drawn[start : start + 10] for start in (0, 10, 20)]
    assert [sorted(epoch) for epoch in epochs] == [ITEMS] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_neighbouring_seeds_have_unrelated_orders():
    orders = {tuple(Stream(ITEMS, 10, seed).batch(epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_a_seed_may_be_as_large_as_a_recipe_allows():
    large = [Stream(ITEMS, 10, seed).batch(0) for seed in (2**63 - 1, 2**63 - 2, 1_700_000_000_000_000_000)]
    assert [sorted(order) for order in large] == [ITEMS] * 3 and len({tuple(order) for order in large}) == 3
    assert order_seed(5, 7) == 5_000_022, "orders of small seeds are those that results were published with"
    assert order_seed(2**63 - 1, 3) == 2**63 - 1_000_000


def test_the_last_batch_has_what_is_left():
    stream = Stream(ITEMS, 4, seed=0, epochs=1)
    assert stream.iterations == 3
    assert [len(stream.batch(i)) for i in range(3)] == [4, 4, 2]
    assert sorted(item for i in range(3) for item in stream.batch(i)) == ITEMS


@pytest.mark.parametrize(
    ("epochs", "items", "batches"), [(0.5, 5, 2), (1.5, 15, 4), (2, 20, 5), (0.01, 1, 1), (0.25, 2, 1)]
)
def test_fractional_epochs(epochs, items, batches):
    stream = Stream(ITEMS, 4, seed=0, epochs=epochs)
    assert stream.iterations == batches
    drawn = [item for i in range(batches) for item in stream.batch(i)]
    assert len(drawn) == items
    assert len(set(drawn)) == min(items, 10)


def test_a_batch_larger_than_the_data_goes_on_into_the_next_epoch():
    assert sorted(Stream(ITEMS, 25, seed=0).batch(0)) == sorted(ITEMS * 2 + Stream(ITEMS, 25, seed=0).batch(0)[20:])


def test_nothing_to_draw_from():
    with pytest.raises(ValueError, match="at least one item"):
        Stream([], 4, seed=0)


@pytest.mark.parametrize(("ranks", "sizes"), [(1, [4, 4, 2]), (2, [4, 4, 2]), (4, [4, 4])])
def test_ranks_get_equal_shares_to_the_end(ranks, sizes):
    """Where the last batch cannot be shared evenly, it is cut: a rank with nothing to do would wait for ever."""
    stream = Stream(ITEMS, 4, seed=0, epochs=1, ranks=ranks)
    assert [len(stream.batch(i)) for i in range(stream.iterations)] == sizes
