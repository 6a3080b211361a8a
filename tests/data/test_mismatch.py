from __future__ import annotations

import random

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


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_comes_from_another_prompt_wherever_there_is_one(seed):
    """Pairs taken apart lie side by side where they are not shuffled, and anywhere in a shuffled step."""
    chosen = random.Random(seed)
    prompts = [(chosen.randrange(3), 7) for _ in range(12)]
    rows = [row(prompt, (20 + place,)) for place, prompt in enumerate(prompts)]
    for place, made in enumerate(with_mismatched(rows, 99)):
        after = [(place + step) % 12 for step in range(1, 12)]
        wanted = next(other for other in after if prompts[other] != prompts[place])
        assert made.mismatched.input_ids == (*prompts[place], 20 + wanted)


def test_the_other_answer_of_a_pair_is_not_mismatched():
    rows = [row((1,), (11,)), row((1,), (12,), False), row((2,), (13,)), row((2,), (14,), False)]
    made = with_mismatched(rows, 99)
    assert [m.mismatched.input_ids for m in made] == [(1, 13), (1, 13), (2, 11), (2, 11)]
    around = with_mismatched([rows[0], rows[1], rows[2], row((1,), (15,))], 99)
    assert [m.mismatched.input_ids for m in around] == [(1, 13), (1, 13), (2, 15), (1, 13)]
    same = with_mismatched(rows[:2], 99)
    assert [m.mismatched.input_ids for m in same] == [(1, 12), (1, 11)], "all have one prompt"


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
