from __future__ import annotations

import pytest

from accord.data import EncodedLabelled, TokenSequence, with_mismatched
from accord.errors import DataError


def row(prompt: tuple[int, ...], answer: tuple[int, ...], label: bool = True) -> EncodedLabelled:
    return EncodedLabelled(TokenSequence(prompt + answer, (False,) * len(prompt) + (True,) * len(answer)), label)


def test_each_prompt_gets_the_next_rows_answer_and_the_last_the_firsts():
    rows = [row((1, 2), (11,)), row((3,), (12, 13), False), row((4, 5, 6), (14, 15))]
    made = with_mismatched(rows, 99)
    assert [m.mismatched.input_ids for m in made] == [(1, 2, 12, 13), (3, 14, 15), (4, 5, 6, 11)]
    assert [m.mismatched.target_mask for m in made] == [
        (False, False, True, True),
        (False, True, True),
        (False, False, False, True),
    ]
    assert [(m.sequence, m.label) for m in made] == [(r.sequence, r.label) for r in rows], "the rows stay as they were"


def test_turns_of_the_user_inside_an_answer_are_not_targets_elsewhere_either():
    talk = EncodedLabelled(TokenSequence((1, 2, 3, 4), (False, True, False, True)), True)
    made = with_mismatched([row((7, 8), (9,)), talk], 99)
    assert made[0].mismatched == TokenSequence((7, 8, 2, 3, 4), (False, False, True, False, True))


def test_an_answer_loses_its_end_at_the_limit():
    made = with_mismatched([row((1, 2, 3), (4,)), row((5,), (6, 7, 8))], 4)
    assert made[0].mismatched == TokenSequence((1, 2, 3, 6), (False, False, False, True))
    assert made[1].mismatched.input_ids == (5, 4)


def test_one_row_has_no_other():
    with pytest.raises(DataError, match="one row alone"):
        with_mismatched([row((1,), (2,))], 9)
