"""Questions with answers as rows of a file: the layouts that the field publishes.

- questions with answers (HuggingFaceH4/stack-exchange-preferences): `question`, or `title` and `body`; `answers`, a list of
  objects with `text` or `body`, and with `pm_score`, or with `score`, `upvotes` or `votes` and `selected` or `accepted`;
- pairs (lvwerra/stack-exchange-paired): `question`, and `response_j`, which is better than `response_k`.

`pm_score` is the recipe's score, made by whoever wrote the file; votes go through the recipe here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from accord.data.sources import Row, RowError
from accord.data.stackexchange import Answer, Question, score

IDS = ("question_id", "qid", "id")
VOTES = ("score", "upvotes", "votes")
ACCEPTED = ("accepted", "selected", "is_accepted")
_TAG = re.compile(r"<[a-zA-Z][^>]*>")


def to_question(row: Row, number: int, html: bool) -> Question:
    """The question of a row.

    Args:
        row: of one of the layouts.
        number: of the row, from 1: its id where it has none.
        html: are the texts HTML?

    Raises:
        RowError: a column is missing or of the wrong kind, or texts that should be HTML are not.
    """
    values = row.values
    title = _text(values, "title") if values.get("title") is not None else ""
    body = _text(values, "question" if values.get("question") is not None else "body")
    id = next((values[name] for name in IDS if isinstance(values.get(name), int | str)), number)
    ready = values.get("response_j") is not None and values.get("response_k") is not None
    if ready:
        answers: tuple[Answer, ...] = (Answer(_text(values, "response_j"), 1), Answer(_text(values, "response_k"), 0))
    else:
        answers = _answers(values)
    for name, text in (("question", body), *(("answer", answer.text) for answer in answers)):
        if html and text.strip() and not _TAG.search(text):
            raise RowError(f"the text of the {name} has no HTML tag; if the texts are Markdown, say --content markdown")
    return Question(id, title, body, answers, html, has_scores=not ready)


def _answers(values: Mapping[str, Any]) -> tuple[Answer, ...]:
    found = values.get("answers")
    if not isinstance(found, list):
        raise RowError("`answers` is missing or no list (and there is no `response_j` with `response_k`)")
    return tuple(_answer(answer, f"answers[{index}]") for index, answer in enumerate(found))


def _answer(values: Any, where: str) -> Answer:
    if not isinstance(values, Mapping):
        raise RowError(f"{where} is no object with `text` and votes")
    text = _text(values, "text" if values.get("text") is not None else "body", where)
    if values.get("pm_score") is not None:
        given = _number(values, "pm_score", where)
        return Answer(text, given, given)
    name = next((name for name in VOTES if values.get(name) is not None), None)
    if name is None:
        raise RowError(f"{where} has none of `pm_score`, {', '.join(f'`{name}`' for name in VOTES)}")
    votes = _number(values, name, where)
    if votes != int(votes):
        raise RowError(f"{where}: `{name}` is {votes}; votes are whole numbers")
    accepted = next((values[name] for name in ACCEPTED if values.get(name) is not None), False)
    if accepted not in (0, 1):
        raise RowError(f"{where}: whether it is accepted must be true or false, not {accepted!r}")
    return Answer(text, score(int(votes), bool(accepted)), votes)


def _text(values: Mapping[str, Any], name: str, where: str = "") -> str:
    value = values.get(name)
    place = f"{where}: `{name}`" if where else f"`{name}`"
    if not isinstance(value, str):
        raise RowError(
            f"{place} is {'missing' if value is None else f'of type {type(value).__name__}'}; it must be text"
        )
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise RowError(f"{place} holds half a surrogate pair, which is no text")
    return value


def _number(values: Mapping[str, Any], name: str, where: str) -> float:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(f"{where}: `{name}` is {value!r}; it must be a number")
    return value
