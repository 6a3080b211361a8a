"""Labels of quality in the prompt: what conditional fine-tuning learns with, and what a model trained so is asked with."""

from __future__ import annotations

import json
import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

from accord.data.formats import Loaded
from accord.errors import ConfigError, DataError
from accord.types import Example, LabelledResponse, Message, PreferencePair, Text

FILE = "conditioning.json"
"""Beside a model's weights."""

Value = float | str
"""A score, or a label as the data has it."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """How a prompt says how good the answer is to be."""

    template: str
    """With `{label}` and `{prompt}`."""
    labels: tuple[str, ...]
    """Worst first."""
    edges: tuple[float, ...] = ()
    """Scores between one label and the next; empty where the data has labels and no scores."""

    @property
    def best(self) -> str:
        """What one asks for."""
        return self.labels[-1]

    def label_of(self, value: Value) -> str:
        """The label of a score (one at an edge has the better one), or the label itself."""
        return value if isinstance(value, str) else self.labels[bisect_right(self.edges, value)]

    def check(self, values: Sequence[Value]) -> None:
        """Look at values of other rows than those that it was made of.

        Raises:
            DataError: a label is unknown, or there are scores, and the rows that it was made of had labels.
        """
        unknown = sorted({value for value in values if isinstance(value, str)} - set(self.labels))
        if unknown:
            raise DataError(f"rows have the labels {', '.join(unknown)}; algorithm.labels are {', '.join(self.labels)}")
        if not self.edges and not all(isinstance(value, str) for value in values):
            raise DataError("held-out rows have scores, and the training rows have labels: give both the same")

    def apply(self, text: Text, label: str | None = None) -> Text:
        """A prompt that asks for a label, by default the best; in a conversation the last user's turn asks for it.

        Raises:
            ConfigError: no such label, or a conversation without a user's turn.
        """
        label = self.best if label is None else label
        if label not in self.labels:
            raise ConfigError(f"label {label!r} is not one that the model knows: {', '.join(self.labels)}")
        if isinstance(text, str):
            return self._filled(text, label)
        places = [n for n, turn in enumerate(text) if turn.role == "user"]
        if not places:
            raise ConfigError("a conversation without a user's turn has no place for the label")
        asked = Message("user", self._filled(text[places[-1]].content, label))
        return (*text[: places[-1]], asked, *text[places[-1] + 1 :])

    def _filled(self, prompt: str, label: str) -> str:
        # Not `format`: a prompt may have braces of its own.
        return prompt.join(self.template.replace("{label}", label).split("{prompt}"))

    def save(self, folder: Path) -> None:
        """Write it beside a model."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")


def read_conditioning(source: str | Path) -> Conditioning | None:
    """What a model's folder, or a model on the hub, says of its labels; `None` if it was not trained with any.

    Raises:
        DataError: the file cannot be read.
    """
    from transformers.utils import cached_file

    source = Path(source).expanduser()
    if source.is_file():  # of a format that is one file
        return None
    try:
        path = cached_file(
            source, FILE, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
    except OSError:  # no such model, or a closed one: loading it says so
        return None
    if path is None:
        return None
    try:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        return Conditioning(saved["template"], tuple(saved["labels"]), tuple(saved["edges"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{source}: {FILE} cannot be read: {type(error).__name__}: {error}") from error


def fit_conditioning(template: str, labels: Sequence[str], values: Sequence[Value]) -> Conditioning:
    """The conditioning of some rows: scores are cut into as many quantiles as there are labels (Quark, Lu et al. 2022,
    arXiv:2205.13636, section 2); as many different scores as labels get one each.

    Raises:
        DataError: scores and labels are mixed, a label is unknown, or there are fewer different scores than labels.
    """
    given = {value for value in values if isinstance(value, str)}
    if given:
        unknown = sorted(given - set(labels))
        if unknown or any(not isinstance(value, str) for value in values):
            raise DataError(
                f"the rows have the labels {', '.join(sorted(given))}"
                + (" and scores too" if not unknown else f"; algorithm.labels are {', '.join(labels)}, worst first")
            )
        return Conditioning(template, tuple(labels))
    scores = sorted(float(value) for value in values)
    distinct = sorted(set(scores))
    if len(distinct) < len(labels):
        raise DataError(
            f"the rows have {len(distinct)} different scores, too few for {len(labels)} labels (algorithm.labels): "
            "give fewer labels, or finer scores"
        )
    if len(distinct) == len(labels):
        edges = [(low + high) / 2 for low, high in pairwise(distinct)]
    else:
        edges = _quantiles(scores, len(labels))
    return Conditioning(template, tuple(labels), tuple(edges))


def _quantiles(scores: Sequence[float], parts: int) -> list[float]:
    """Where parts of sorted scores begin, as even as can be had: equal scores stay together, and no part is empty."""
    places = [n for n in range(1, len(scores)) if scores[n - 1] < scores[n]]
    edges, first = [], 0
    for part in range(1, parts):
        wanted, last = len(scores) * part // parts, len(places) - (parts - 1 - part)
        chosen = min(range(first, last), key=lambda n: abs(places[n] - wanted))
        edges.append(scores[places[chosen]])
        first = chosen + 1
    return edges


def as_examples(loaded: Loaded, column: str | None) -> tuple[Loaded, list[Value]]:
    """The rows as examples, and how good each is: what a column says, or a thumb (1 or 0), or which answer was chosen.

    Args:
        loaded: rows of any format with an answer; a pair gives two examples.
        column: of a number or label; `None`: no row needs any (the values are then 0).

    Raises:
        DataError: a row has no answer, or neither the column nor a verdict.
    """
    examples: list[Example] = []
    values: list[Value] = []
    origins: list[str] = []
    found: list[tuple[Example, Value]]
    for record, origin in zip(loaded.records, loaded.origins, strict=True):
        match record:
            case PreferencePair(prompt, chosen, rejected, columns=columns):
                found = [(Example(prompt, chosen, columns), 1.0), (Example(prompt, rejected, columns), 0.0)]
            case LabelledResponse(prompt, completion, label, columns):
                found = [(Example(prompt, completion, columns), float(label))]
            case Example():
                found = [(record, 0.0 if column is None else _value(record, column, origin))]
            case _:
                raise DataError(f"{origin} has a prompt and no answer; conditional fine-tuning learns answers")
        for example, value in found:
            examples.append(example)
            values.append(value)
            origins.append(origin)
    return replace(loaded, records=list(examples), origins=origins), values


def _value(example: Example, column: str, origin: str) -> Value:
    value = example.columns.get(column)
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float) and abs(value) <= sys.float_info.max:
        return float(value)
    raise DataError(
        f"{origin}: column `{column}` (algorithm.column) is {value!r}; each row needs a finite number or a label there. Rename "
        "columns with data.columns, or score the rows with a `reward`"
    )
