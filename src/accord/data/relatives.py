"""Common layouts of the field, brought to Accord's own columns before anything else looks at them.

Each function takes the columns of a row and returns what they say in Accord's words, or `None` where the row is not of
its kind. Questions and instructions become conversations, because plain text would glue the answer to the question.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.data.conversation import is_transcript, parse_transcript

Values = dict[str, Any]


def to_own_columns(values: Mapping[str, Any]) -> Values:
    """The row with Accord's column names; other columns, and rows of no known relative, stay as they are.

    Raises:
        RowError: a transcript that cannot be parsed.
    """
    row = dict(values)
    for translate in (_sharegpt, _instruction, _stackexchange, _transcripts):
        translated = translate(dict(row))
        if translated is not None:
            return translated
    return row


def _sharegpt(row: Values) -> Values | None:
    """`conversations` (+ `system`), alone or as the prompt of `chosen` and `rejected` messages."""
    if (
        not isinstance(row.get("conversations"), list)
        or row.get("messages") is not None
        or row.get("prompt") is not None
    ):
        return None
    turns = row.pop("conversations")
    if isinstance(row.get("system"), str) and row["system"].strip():
        turns = [{"role": "system", "content": row.pop("system")}, *turns]
    return row | {"prompt" if row.get("chosen") is not None else "messages": turns}


def _instruction(row: Values) -> Values | None:
    """Alpaca's `instruction`, `input`, `output`, and Dolly's `instruction`, `context`, `response`."""
    if not isinstance(row.get("instruction"), str) or row.get("prompt") is not None:
        return None
    if not row.keys() & {"output", "response"}:
        return None
    told = row.pop("instruction")
    given = next((row.pop(name) for name in ("input", "context") if isinstance(row.get(name), str)), "")
    answer = row.pop("output") if "output" in row else row.pop("response")
    told = f"{told}\n\n{given}" if given.strip() else told
    return row | {"prompt": [_turn("user", told)], "completion": _answer(answer)}


def _stackexchange(row: Values) -> Values | None:
    """`question` with `response_j`, which got more votes than `response_k`."""
    if not {"question", "response_j", "response_k"} <= row.keys():
        return None
    prompt = [_turn("user", row.pop("question"))]
    return row | {
        "prompt": prompt,
        "chosen": _answer(row.pop("response_j")),
        "rejected": _answer(row.pop("response_k")),
    }


def _transcripts(row: Values) -> Values | None:
    r"""HH-RLHF: `chosen` and `rejected` are whole transcripts that start with `\n\nHuman:`."""
    names = [name for name in ("chosen", "rejected", "prompt") if is_transcript(row.get(name))]
    if not {"chosen", "rejected"} <= set(names):
        return None
    return row | {name: parse_transcript(row[name], name) for name in names}


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _answer(content: Any) -> Any:
    """One assistant turn; what is not text is left to the checks, which name the column."""
    return [_turn("assistant", content)] if isinstance(content, str) and content.strip() else content
