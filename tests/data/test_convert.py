from __future__ import annotations

import pytest

from accord.data.convert import convert
from accord.errors import DataError
from accord.types import Example, LabelledResponse, Message, PreferencePair, Prompt

PAIR = PreferencePair("Q", "good", "bad", columns={"topic": "x"})


def test_pair_becomes_each_of_its_relatives():
    assert convert([PAIR], Example).records == [Example("Q", "good", {"topic": "x"})]
    assert convert([PAIR], Prompt).records == [Prompt("Q", {"topic": "x"})]
    both = convert([PAIR, PAIR], LabelledResponse)
    assert both.records[:2] == [
        LabelledResponse("Q", "good", True, {"topic": "x"}),
        LabelledResponse("Q", "bad", False, {"topic": "x"}),
    ]
    assert both.sources == [0, 0, 1, 1]


def test_thumbs_down_are_left_out_visibly_when_imitating():
    rows = [LabelledResponse("Q", "bad", False), LabelledResponse("Q", "good", True)]
    result = convert(rows, Example)
    assert result.records == [Example("Q", "good")] and result.sources == [1]
    assert [index for index, _ in result.left_out] == [0] and "label is false" in result.left_out[0][1]
    assert convert(rows, Prompt).records == [Prompt("Q"), Prompt("Q")]


def test_same_kind_passes_through():
    assert convert([PAIR], PreferencePair).records == [PAIR]


def test_text_without_a_prompt_cannot_become_a_prompt():
    with pytest.raises(DataError, match="no part of it is a question"):
        convert([Example("", "once upon a time")], Prompt)


def test_conversation_that_the_assistant_opens_is_left_out_of_prompts():
    result = convert([Example((), (Message("assistant", "Hi"),)), Example("Q", "A")], Prompt)
    assert result.records == [Prompt("Q")] and result.left_out[0][0] == 0


def test_what_lacks_a_part_cannot_be_made():
    with pytest.raises(DataError, match=r"two answers.*Example rows"):
        convert([Example("Q", "A")], PreferencePair)
    with pytest.raises(DataError, match=r"verdict.*Example rows"):
        convert([Example("Q", "A")], LabelledResponse)
    with pytest.raises(DataError, match=r"needs an answer.*Prompt rows"):
        convert([Prompt("Q")], Example)
