"""Drafts by n-gram look-up, by hand."""

from __future__ import annotations

import pytest

from accord.rollout.lookup import Lookup


def test_a_draft_is_what_followed_the_last_time() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 9, 2, 3], 2)
    assert lookup.draft(2) == [4, 5]
    assert lookup.draft(9) == [4, 5, 9, 2, 3], "no further than what is known"
    assert lookup.draft(0) == []
    lookup.append(7)
    assert lookup.draft(4) == [], "3 7 has not been before"
    for token in (2, 3):
        lookup.append(token)
    assert lookup.draft(3) == [7, 2, 3], "the newest of several occurrences"


def test_too_little_to_look_up() -> None:
    assert Lookup([], 3).draft(4) == Lookup([1, 1], 3).draft(4) == Lookup([1, 1, 1], 3).draft(4) == []
    assert Lookup([1, 1, 1, 1], 3).draft(4) == [1]


@pytest.mark.parametrize("ngram", [1, 2, 3])
def test_equals_a_search_from_the_end(ngram: int) -> None:
    ids = [(7 * n * n + n // 5) % 4 for n in range(120)]
    lookup = Lookup(ids[:10], ngram)
    for end in range(10, 120):
        last = ids[end - ngram : end]
        found = [at for at in range(end - ngram) if ids[at : at + ngram] == last]
        assert lookup.draft(5) == (ids[found[-1] + ngram : end][:5] if found else [])
        lookup.append(ids[end])
