from __future__ import annotations

import pytest

from accord.data import Row, convert_row, detect
from accord.data.labels import label_name
from accord.data.sources import Rejection, RowError
from accord.types import LabelledText, LabelledTokens


@pytest.mark.parametrize(
    ("given", "name"), [("x", "x"), (" x ", "x"), (True, "true"), (False, "false"), (3, "3"), (-1, "-1"), (2.0, "2")]
)
def test_a_label_is_a_name(given, name):
    assert label_name(given) == name


@pytest.mark.parametrize("given", ["", " ", None, 0.5, [1], float("nan"), float("inf")])
def test_what_is_no_label(given):
    with pytest.raises(RowError, match=r"`label` is .*; it must be a name, a whole number, or true or false"):
        label_name(given)


def made(values, format=None):
    row = Row("a.jsonl:7", values)
    return convert_row(row, format or detect([row]))


def test_rows_are_known_by_their_columns():
    assert made({"text": "a b", "label": 1, "id": 5}) == LabelledText("a b", "1", {"id": 5})
    assert made({"tokens": ["a", "b"], "labels": [True, "x"]}) == LabelledTokens(("a", "b"), ("true", "x"))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"text": " ", "label": "a"}, "`text` is empty"),
        ({"text": 5, "label": "a"}, "column `text` is of type int"),
        ({"text": "a", "label": ""}, "`label` is ''"),
        ({"tokens": ["a", "b"], "labels": ["x"]}, "2 words in `tokens` and 1 `labels`; one each is needed"),
        ({"tokens": [], "labels": []}, "`tokens` is not a list of one entry a word, or is empty"),
        ({"tokens": "ab", "labels": ["x"]}, "`tokens` is not a list"),
        ({"tokens": ["a", " "], "labels": ["x", "y"]}, "word 2 of `tokens` is empty or no text"),
        ({"tokens": ["a"], "labels": [0.5]}, "label 1 is 0.5"),
    ],
)
def test_bad_rows_are_rejected_with_their_reason(values, reason):
    result = made(values)
    assert isinstance(result, Rejection) and reason in result.reason and result.origin == "a.jsonl:7"
