"""Labelled texts and words to token ids, and the classes to tell apart."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from accord.config.data import DataConfig
from accord.data.chat import Encoder
from accord.data.encode import Encoded, encode_records
from accord.data.formats import Loaded
from accord.data.sources import Rejection, RowError, stop_on
from accord.errors import DataError
from accord.types import LabelledText, LabelledTokens, Record


@dataclass(frozen=True, slots=True)
class EncodedClasses:
    """A text, and the number of the class at each token that one is read at; both of one length."""

    input_ids: tuple[int, ...]
    classes: tuple[int | None, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


def labels_of(record: Record) -> tuple[str, ...]:
    """The labels of one row."""
    assert isinstance(record, LabelledText | LabelledTokens)
    return (record.label,) if isinstance(record, LabelledText) else record.labels


def find_labels(loaded: Loaded) -> tuple[str, ...]:
    """All labels of the rows: numbers by size if all are, names by the alphabet otherwise.

    Raises:
        DataError: there is one alone, so that nothing is to be told apart.
    """
    found = {label for record in loaded.records for label in labels_of(record)}
    if len(found) < 2:
        raise DataError(
            f"all rows of {loaded.path} have the label {next(iter(found))!r}, and a classifier tells two or more apart: "
            "give rows of each, or say with algorithm.labels which there are"
        )
    numbers = all(_is_number(label) for label in found)
    return tuple(sorted(found, key=int) if numbers else sorted(found))


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def check_labels(loaded: Loaded, labels: Sequence[str]) -> None:
    """Refuse rows with other labels.

    Raises:
        DataError: some have; names files, lines and labels.
    """
    bad = []
    for record, origin in zip(loaded.records, loaded.origins, strict=True):
        try:
            _numbers(record, labels)
        except RowError as error:
            bad.append(Rejection(origin, str(error)))
    stop_on(bad, loaded.path, loaded.rows)


def encode_classes(
    loaded: Loaded, encoder: Encoder, config: DataConfig, labels: Sequence[str]
) -> Encoded[EncodedClasses]:
    """Texts as the tokenizer by itself makes ids of them, at most `config.max_tokens` long, and where a class is read.

    A text's class is read at its last token. Words are joined by single spaces; a word's class is read at the last token that
    lies within it, since a causal model has read no further before that. Truncation cuts the end off, and words that it cuts off,
    or into, with their labels.

    Args:
        loaded: rows of `LabelledText` or `LabelledTokens`.
        encoder: of the model's tokenizer.
        config: limits, and what becomes of bad rows.
        labels: the classes' names, by number.

    Raises:
        DataError: rows do not fit or have other labels and `config.on_bad_row` is `stop`, or no row is left.
    """

    def one(record: Record) -> EncodedClasses:
        numbers = _numbers(record, labels)
        words = record.tokens if isinstance(record, LabelledTokens) else None
        ids, spans = encoder.encode_text(record.text if isinstance(record, LabelledText) else " ".join(words or ()))
        if len(ids) > config.max_tokens and config.too_long == "reject":
            raise RowError(f"the row has {len(ids)} tokens, limit {config.max_tokens} (data.max_tokens)")
        ids = ids[: config.max_tokens]
        places = [len(ids) - 1] if words is None else _word_ends(words, spans)
        classes: list[int | None] = [None] * len(ids)
        for place, number in zip(places, numbers, strict=True):
            if place < len(ids):
                classes[place] = number
        if all(number is None for number in classes):
            raise RowError("no word is left whole after truncation")
        return EncodedClasses(ids, tuple(classes))

    kind = LabelledTokens if loaded.records and isinstance(loaded.records[0], LabelledTokens) else LabelledText
    return encode_records(loaded, kind, one, config.on_bad_row)


def _word_ends(words: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Index of the last token within each word, in the text of words with spaces between."""
    ends, start, token = [], 0, 0
    for number, word in enumerate(words, 1):
        last = None
        while token < len(spans) and spans[token][1] <= start + len(word):
            if spans[token][1] > start:
                last = token
            token += 1
        if last is None:
            raise RowError(f"word {number}, {word!r}, has no token that ends in it")
        ends.append(last)
        start += len(word) + 1
    return ends


def _numbers(record: Record, labels: Sequence[str]) -> list[int]:
    """The number of each label of a row.

    Raises:
        RowError: a label that is none of these.
    """
    numbers = []
    for place, label in enumerate(labels_of(record), 1):
        if label not in labels:
            near = difflib.get_close_matches(label, labels, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"labels: {', '.join(labels)}"
            where = f"label {place}" if isinstance(record, LabelledTokens) else "`label`"
            raise RowError(f"{where} is {label!r}, which is none of the {len(labels)} labels to learn: {hint}")
        numbers.append(list(labels).index(label))
    return numbers
