"""Rows of classification: a text with its label, or words with a label each. Labels are names, whatever the file has them as."""

from __future__ import annotations

from typing import Any

from accord.data.sources import RowError
from accord.types import LabelledText, LabelledTokens


def label_name(value: Any, what: str = "`label`") -> str:
    """A label as a name: text as it stands, `true` or `false`, or the digits of a whole number.

    Raises:
        RowError: it is none of these, or empty.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value.is_integer():  # what a table makes of whole numbers where some are missing
        return str(int(value))
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise RowError(f"{what} is {value!r}; it must be a name, a whole number, or true or false")


def labelled_text(values: dict[str, Any]) -> LabelledText:
    """`text` and `label`.

    Raises:
        RowError: no text, or no label.
    """
    text = values["text"]
    if not isinstance(text, str):
        raise RowError(f"column `text` is of type {type(text).__name__}; it must be text")
    if not text.strip():
        raise RowError("`text` is empty")
    return LabelledText(text, label_name(values["label"]), _others(values, "text", "label"))


def labelled_tokens(values: dict[str, Any]) -> LabelledTokens:
    """`tokens`, which are words, and as many `labels`.

    Raises:
        RowError: they are no lists of one length, or an entry is no word or no label.
    """
    words, labels = values["tokens"], values["labels"]
    for name, listed in (("tokens", words), ("labels", labels)):
        if not isinstance(listed, list | tuple) or not listed:
            raise RowError(f"`{name}` is not a list of one entry a word, or is empty")
    if len(words) != len(labels):
        raise RowError(f"{len(words)} words in `tokens` and {len(labels)} `labels`; one each is needed")
    for number, word in enumerate(words, 1):
        if not isinstance(word, str) or not word.strip():
            raise RowError(f"word {number} of `tokens` is empty or no text")
    names = tuple(label_name(label, f"label {number}") for number, label in enumerate(labels, 1))
    return LabelledTokens(tuple(words), names, _others(values, "tokens", "labels"))


def _others(values: dict[str, Any], *used: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in used}
