"""Posts.xml by hand, for the tests of the Stack Exchange recipe."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

HEAD = '\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n'


def row(**values: object) -> str:
    columns = " ".join(f'{name}="{escape(str(value), quote=True)}"' for name, value in values.items())
    return f"  <row {columns} />".replace("\n", "&#xA;") + "\n"  # as the archives write line breaks


def question(id: int, accepted: int | None = None, title: str = "", body: str = "<p>Why?</p>", **more: object) -> str:
    mark = {} if accepted is None else {"AcceptedAnswerId": accepted}
    return row(Id=id, PostTypeId=1, **mark, Score=3, Title=title or f"title {id}", Body=body, **more)


def answer(id: int, parent: int, votes: int, body: str | None = None, **more: object) -> str:
    text = f"<p>answer {id}</p>" if body is None else body
    return row(Id=id, PostTypeId=2, ParentId=parent, Score=votes, Body=text, **more)


def dump(path: Path, rows: Iterable[str], head: str = HEAD, tail: str = "</posts>\n") -> Path:
    path.write_text(head + "".join(rows) + tail, encoding="utf-8")
    return path
