"""Rows of questions with answers, as the field publishes them."""

from __future__ import annotations

from typing import Any

import pytest

from accord.data.sources import Row, RowError
from accord.data.stackexchange import Answer
from accord.data.stackexchange_rows import to_question

H4 = {
    "qid": 7,
    "question": "<p>Why?</p>",
    "answers": [
        {"answer_id": 1, "pm_score": 4, "selected": True, "text": "<p>so</p>"},
        {"answer_id": 2, "pm_score": -1, "selected": False, "text": "<p>no</p>"},
    ],
}


def read(values: dict[str, Any], html: bool = True):
    return to_question(Row("rows.jsonl:1", values), 1, html)


def test_stack_exchange_preferences():
    """`pm_score` is the score already: an accepted answer gets nothing on top."""
    found = read(H4)
    assert (found.id, found.title, found.body) == (7, "", "<p>Why?</p>")
    assert found.answers == (Answer("<p>so</p>", 4, 4), Answer("<p>no</p>", -1, -1))


def test_votes_go_through_the_recipe():
    answers = [
        {"body": "<p>a</p>", "score": 6.0, "accepted": True},
        {"body": "<p>b</p>", "upvotes": 6},
        {"body": "<p>c</p>", "votes": -2, "is_accepted": 1},
    ]
    found = read({"id": "x", "title": "T", "body": "<p>q</p>", "answers": answers})
    assert [answer.score for answer in found.answers] == [4, 3, -1]
    assert (found.id, found.title) == ("x", "T")


def test_ready_pairs():
    found = read({"question": "Why?", "response_j": "So.", "response_k": "No."}, html=False)
    assert [(a.text, a.score) for a in found.answers] == [("So.", 1), ("No.", 0)]
    assert found.id == 1 and not found.has_scores and not found.html


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": None}, "`body` is missing"),
        ({"question": 3}, "`question` is of type int"),
        ({"question": "no tags"}, "no HTML tag; if the texts are Markdown, say --content markdown"),
        ({"question": "<p>\ud800</p>"}, "half a surrogate pair"),
        ({"answers": None}, "`answers` is missing"),
        ({"answers": ["x"]}, r"answers\[0\] is no object"),
        ({"answers": [{"text": "<p>a</p>"}]}, r"answers\[0\] has none of `pm_score`"),
        ({"answers": [{"pm_score": 1}]}, r"answers\[0\]: `body` is missing"),
        ({"answers": [{"text": "<p>a</p>", "score": "7"}]}, "`score` is '7'; it must be a number"),
        ({"answers": [{"text": "<p>a</p>", "score": float("nan")}]}, "must be a number"),
        ({"answers": [{"text": "<p>a</p>", "score": True}]}, "must be a number"),
        ({"answers": [{"text": "<p>a</p>", "score": 1.5}]}, "votes are whole numbers"),
        ({"answers": [{"text": "<p>a</p>", "score": 1, "accepted": "yes"}]}, "must be true or false"),
        ({"answers": [{"text": "a", "pm_score": 1}]}, "text of the answer has no HTML tag"),
    ],
)
def test_a_bad_row_says_what_is_wrong(change, said):
    with pytest.raises(RowError, match=said):
        read(H4 | change)
