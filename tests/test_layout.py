"""Layouts by hand, and against what every token of a batch may see."""

from __future__ import annotations

import random

import numpy
import pytest
import torch

from accord import packing
from accord.batch import TokenBatch
from accord.layout import Layout


@pytest.fixture(autouse=True)
def _short_prefixes_count(monkeypatch) -> None:
    monkeypatch.setattr(packing, "SHORTEST", 2)


def of(*sequences: list[int]) -> Layout:
    return Layout.of([numpy.array(sequence) for sequence in sequences])


def forest(draw: random.Random, sequences: int = 9) -> list[list[int]]:
    """Sequences of few different tokens, many of which go on from an earlier one, or repeat it, or stop within it."""
    made: list[list[int]] = []
    for _ in range(sequences):
        start = draw.choice(made)[: draw.randint(0, 9)] if made and draw.random() < 0.8 else []
        made.append(start + [draw.randint(1, 3) for _ in range(draw.randint(0 if start else 1, 6))])
    return made


def test_a_prompt_and_three_answers_by_hand() -> None:
    layout = of([1, 2, 3, 7], [1, 2, 3, 8, 9], [5, 5], [1, 2, 3, 6])
    # The fourth is the first in order of ids, so the prompt stands with it; places follow the order of the batch.
    assert layout.source_U.tolist() == [3, 7, 8, 9, 10, 11, 12, 13, 14]
    assert layout.bounds == (0, 1, 3, 5, 9)
    assert layout.paths == (((3, 3),), ((3, 3),), (), ())
    assert layout.place_T.tolist() == [5, 6, 7, 0, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7, 8]
    assert layout.uses_U.tolist() == [1, 1, 1, 1, 1, 3, 3, 3, 1]
    assert layout.keys() == ([0, 4, 9, 11, 15], [5, 6, 7, 0, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7, 8])
    assert layout.tokens == 9 and layout.shares


def test_a_tree_by_hand() -> None:
    """A system prompt before two prompts, each before two answers: a path may lead through several segments."""
    layout = of([1, 1, 2, 2, 3], [1, 1, 2, 2, 4], [1, 1, 3, 3, 4], [1, 1, 3, 3, 5])
    assert layout.bounds == (0, 5, 6, 9, 10)
    assert layout.paths == ((), ((0, 4),), ((0, 2),), ((0, 2), (2, 2)))


def test_equal_sequences_and_one_that_begins_another() -> None:
    layout = of([4, 5, 6], [4, 5, 6], [4, 5], [4, 5, 6, 7])
    assert layout.tokens == 4, "each token once"
    assert layout.place_T.tolist()[6:8] == layout.place_T.tolist()[:2]
    assert layout.place_T[:3].tolist() == layout.place_T[3:6].tolist() == layout.place_T[8:11].tolist()
    assert all(end > start for start, end in zip(layout.bounds, layout.bounds[1:], strict=False)), "no empty segment"


def test_nothing_in_common_is_laid_out_as_it_is() -> None:
    layout = of([1, 2, 3], [2, 2], [3])
    assert layout.source_U.tolist() == layout.place_T.tolist() == list(range(6))
    assert layout.bounds == (0, 3, 5, 6) and layout.paths == ((), (), ()) and not layout.shares


def test_too_little_in_common_is_computed_again() -> None:
    assert not of([1, 2, 3], [1, 3, 3]).shares, "one token, and two are asked for"
    long = list(range(10, 10 + 2 * packing.OWN_TO_SHARED))
    assert of([1, 2, 5], [1, 2, *long]).shares
    assert not of([1, 2, 5], [1, 2, *long, 9]).shares, "two tokens before more own ones than pays"


def test_tokens_at_other_positions_are_not_in_common() -> None:
    ids = [[7, 8, 9, 5], [7, 8, 9, 6]]
    batch = TokenBatch.from_sequences(ids, [[False] * 4] * 2)
    assert batch.layout.tokens == 5
    restarting = torch.tensor([0, 1, 2, 3, 0, 1, 0, 1])
    parts = {name: getattr(batch, name) for name in ("input_ids_T", "cu_seqlens", "target_mask_T")}
    moved = TokenBatch(**parts, position_ids_T=restarting)
    assert moved.layout.tokens == 6, "two tokens agree in id and position"
    assert moved.layout.place_T[4:6].tolist() == moved.layout.place_T[:2].tolist()


@pytest.mark.parametrize("seed", range(200))
def test_every_token_sees_its_own_sequence_and_nothing_else(seed: int) -> None:
    """By the ids found along each path: whatever the tree, a token's keys spell its sequence up to it."""
    ids = forest(random.Random(seed))
    layout = of(*ids)
    flat = [i for sequence in ids for i in sequence]
    computed = [flat[t] for t in layout.source_U.tolist()]
    assert [computed[u] for u in layout.place_T.tolist()] == flat
    key_bounds, keys = layout.keys()
    seen = {}
    for n in range(len(layout.bounds) - 1):
        of_segment = keys[key_bounds[n] : key_bounds[n + 1]]
        own = layout.bounds[n + 1] - layout.bounds[n]
        for at in range(own):
            seen[layout.bounds[n] + at] = of_segment[: len(of_segment) - own + at + 1]
    place = 0
    for sequence in ids:
        for t in range(len(sequence)):
            mine = seen[layout.place_T[place + t].item()]
            assert mine == layout.place_T[place : place + t + 1].tolist()
            assert [computed[u] for u in mine] == sequence[: t + 1]
        place += len(sequence)
    assert int(layout.uses_U.sum()) == len(flat) and bool((layout.uses_U > 0).all())


@pytest.mark.parametrize("seed", range(50))
def test_each_token_of_the_tree_is_computed_once_where_all_of_it_pays(seed: int, monkeypatch) -> None:
    monkeypatch.setattr(packing, "SHORTEST", 1)
    ids = forest(random.Random(seed))
    assert of(*ids).tokens == len({tuple(s[: t + 1]) for s in ids for t in range(len(s))})


def test_a_layout_is_made_once_and_goes_along(monkeypatch) -> None:
    batch = TokenBatch.from_sequences([[1, 2, 3], [1, 2, 4]], [[False] * 3] * 2)
    layout = batch.layout
    monkeypatch.setattr(Layout, "of", None)
    assert batch.layout is layout
    moved = batch.to("cpu").layout
    assert torch.equal(moved.place_T, layout.place_T) and moved.paths == layout.paths
