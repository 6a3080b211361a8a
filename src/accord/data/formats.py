"""What a row of feedback is: the format is found from its columns, and every row is checked and becomes a record.

| format | columns | record |
|---|---|---|
| preference | chosen, rejected, (prompt), (margin) | PreferencePair |
| stepwise | prompt, completions, labels | StepwiseExample |
| labelled | prompt, completion, label; or messages, label | LabelledResponse |
| completion | prompt, completion | Example |
| messages | messages | Example |
| prompt | prompt | Prompt |
| labelled_text | text, label | LabelledText |
| labelled_tokens | tokens, labels | LabelledTokens |
| text | text | Example |

Text is a string or a list of messages. Other columns travel with the record. `relatives.py` brings Alpaca, ShareGPT,
StackExchange and HH-RLHF rows to these columns first.
"""

from __future__ import annotations

import difflib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accord.config.data import DataConfig
from accord.data import conversation as talk
from accord.data.convert import convert
from accord.data.labels import labelled_text, labelled_tokens
from accord.data.relatives import to_own_columns
from accord.data.sources import GO_ON, Rejection, Row, RowError, count_reasons, read_rows, refuse_split, stop_on
from accord.errors import DataError
from accord.types import (
    Columns,
    Example,
    LabelledResponse,
    Message,
    PreferencePair,
    Prompt,
    Record,
    StepwiseExample,
    Text,
)

logger = logging.getLogger(__name__)

FORMATS: Mapping[str, tuple[frozenset[str], ...]] = {
    "preference": (frozenset({"chosen", "rejected"}),),
    "stepwise": (frozenset({"prompt", "completions", "labels"}),),
    "labelled": (frozenset({"prompt", "completion", "label"}), frozenset({"messages", "label"})),
    "completion": (frozenset({"prompt", "completion"}),),
    "messages": (frozenset({"messages"}),),
    "prompt": (frozenset({"prompt"}),),
    "labelled_text": (frozenset({"text", "label"}),),
    "labelled_tokens": (frozenset({"tokens", "labels"}),),
    "text": (frozenset({"text"}),),
}
"""Columns that each format needs (any one of the sets), the most demanding format first."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Records of one source. Every row read is in `records` (by its origin), in `rejections` or in `left_out`."""

    path: str
    format: str
    records: list[Record]
    origins: list[str]
    """Where each record comes from; two records of one row share their origin."""
    rejections: list[Rejection] = field(default_factory=list)
    """Rows that break a rule."""
    left_out: list[Rejection] = field(default_factory=list)
    """Good rows that the wanted kind of record has no use for, such as a thumb down for imitation."""

    @property
    def rows(self) -> int:
        """Rows read."""
        return len(set(self.origins)) + len(self.rejections) + len(self.left_out)


def read_records(
    config: DataConfig, path: str | None = None, want: type[Record] | None = None, go_on: str = GO_ON
) -> Loaded:
    """Read `path` (default: `config.path`) and check every row; with `want`, turn the records into that kind. `go_on` is what the
    error says of leaving bad rows out.

    Raises:
        DataError: the source cannot be read, its format is not clear, rows are bad and `config.on_bad_row` is `stop`,
            no row is left, or the records cannot become `want`.
    """
    path = config.path if path is None else path
    if path == config.path:  # held-out rows may lie in a file beside a dataset with splits
        refuse_split(path, config.split)
    rows, rejections = read_rows(path, config.split, config.limit)
    rows = _rename(rows, config.columns, path)
    loaded = check_rows(rows, path, _format_for(rows, config.format, want), rejections, go_on)
    if config.on_bad_row == "stop":
        stop_on(loaded.rejections, path, loaded.rows, go_on=go_on)
    if loaded.rejections:
        reasons = count_reasons(loaded.rejections)
        logger.warning("%s: %d of %d rows left out: %s", path, len(loaded.rejections), loaded.rows, reasons)
    return loaded if want is None else _as_wanted(loaded, want)


def check_rows(
    rows: Sequence[Row], path: str, format: str = "auto", rejections: Sequence[Rejection] = (), go_on: str = GO_ON
) -> Loaded:
    """Make the records of rows; `rejections` are those that reading them gave already.

    Raises:
        DataError: the format is not clear, or no row is left.
    """
    if not rows:
        stop_on(rejections, path, len(rejections), go_on=go_on)
        raise DataError(f"{path} has no rows")
    name = detect(rows) if format == "auto" else format
    loaded = Loaded(path, name, [], [], list(rejections))
    for row in rows:
        result = convert_row(row, name)
        if isinstance(result, Rejection):
            loaded.rejections.append(result)
        else:
            loaded.records.append(result)
            loaded.origins.append(row.origin)
    if not loaded.records:
        stop_on(loaded.rejections, path, loaded.rows, go_on=go_on)
    return loaded


def _format_for(rows: Sequence[Row], format: str, want: type[Record] | None) -> str:
    """Text that is to be imitated is text, whether or not a column `label` stands beside it."""
    detectable = format == "auto" and want is Example and bool(rows)
    return "text" if detectable and detect(rows) == "labelled_text" else format


def _as_wanted(loaded: Loaded, want: type[Record]) -> Loaded:
    try:
        converted = convert(loaded.records, want)
    except DataError as error:
        raise DataError(f"{loaded.path} ({loaded.format}): {error}") from error
    origins = [loaded.origins[source] for source in converted.sources]
    left_out = [Rejection(loaded.origins[source], reason) for source, reason in converted.left_out]
    if not converted.records:
        raise DataError(f"no row of {loaded.path} can become a {want.__name__}: {count_reasons(left_out)}")
    if left_out:
        logger.info("%s: %d rows have no use here: %s", loaded.path, len(left_out), count_reasons(left_out))
    return Loaded(loaded.path, loaded.format, converted.records, origins, loaded.rejections, left_out)


def _rename(rows: list[Row], columns: Mapping[str, str], path: str) -> list[Row]:
    known = columns_of(rows)
    for old in columns:
        if rows and old not in known:
            near = difflib.get_close_matches(old, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"columns: {', '.join(known)}"
            raise DataError(f"data.columns renames `{old}`, which no row of {path} has: {hint}")
    renamed = []
    for row in rows:
        kept = {name: value for name, value in row.values.items() if name not in columns}
        # A renamed column wins over one that has the name already.
        values = kept | {new: row.values[old] for old, new in columns.items() if old in row.values}
        renamed.append(Row(row.origin, values))
    return renamed


def columns_of(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows have a value (not null) in each column, in the order in which the columns first appear."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(name for name, value in row.values.items() if value is not None)
    return dict(counts)


def detect(rows: Sequence[Row]) -> str:
    """The format that most rows fit; rows that do not are rejected later, each with its reason.

    Raises:
        DataError: no row fits any format; says which columns were found, and what is needed.
    """
    votes = Counter(name for row in rows if (name := _format_of(row)) is not None)
    if votes:
        return votes.most_common(1)[0][0]
    found = ", ".join(f"`{name}`" for name in columns_of(rows)) or "none"
    needed = "\n".join(f"  - {name}: " + " or ".join(_plus(group) for group in FORMATS[name]) for name in FORMATS)
    raise DataError(
        f"the format of the rows is not known. Columns found: {found}. Needed is one of\n{needed}\n"
        "Rename columns with data.columns, for instance `{question: prompt, answer: completion}`"
    )


def _format_of(row: Row) -> str | None:
    try:
        values = to_own_columns(row.values)
    except RowError:
        return "preference"  # a transcript that is broken is still a transcript
    present = {name for name, value in values.items() if value is not None}
    return next((name for name, groups in FORMATS.items() if any(group <= present for group in groups)), None)


def _plus(columns: Iterable[str]) -> str:
    order = (
        "prompt",
        "messages",
        "chosen",
        "rejected",
        "completion",
        "completions",
        "text",
        "tokens",
        "label",
        "labels",
    )
    return " + ".join(f"`{name}`" for name in sorted(columns, key=order.index))


def convert_row(row: Row, format: str) -> Record | Rejection:
    """Check one row of a known format (a key of `FORMATS`) and make its record."""
    try:
        for name, value in row.values.items():
            talk.check_characters(value, f"column {name!r}")
        values = to_own_columns(row.values)
        groups = FORMATS[format]
        present = {name for name, value in values.items() if value is not None}
        if not any(group <= present for group in groups):
            missing = min((group - present for group in groups), key=len)
            raise RowError(
                f"{_plus(missing)} is missing; format {format} needs {_plus(missing | (groups[0] & present))}"
            )
        return _CONVERTERS[format](values)
    except RowError as error:
        return Rejection(row.origin, str(error))


def _text(values: dict[str, Any]) -> Example:
    text = values["text"]
    if not isinstance(text, str):
        raise RowError(f"column `text` is of type {type(text).__name__}; it must be text")
    talk.check_completion(text, "text")
    return Example("", text, _others(values, "text"))


def _messages(values: dict[str, Any]) -> Example:
    turns = talk.parse_messages(values["messages"], "messages")
    prompt, completion = talk.split_first_answer(turns)
    talk.check_completion(completion, "messages")
    return Example(prompt, completion, _others(values, "messages"))


def _completion(values: dict[str, Any]) -> Example:
    prompt, completion = _prompt_and_answers(values, "completion")
    return Example(prompt, completion, _others(values, "prompt", "completion"))


def _labelled(values: dict[str, Any]) -> LabelledResponse:
    label = values["label"]
    if not isinstance(label, bool | int | float) or label not in (0, 1):
        raise RowError(f"`label` is {label!r}; it must be true or false (or 1 or 0)")
    if values.get("completion") is not None:
        prompt, completion = _prompt_and_answers(values, "completion")
        return LabelledResponse(prompt, completion, bool(label), _others(values, "prompt", "completion", "label"))
    turns = talk.parse_messages(values["messages"], "messages")
    # The label is about the last answer; earlier ones belong to the prompt.
    talk.split_first_answer(turns)
    talk.check_completion(turns[-1:], "messages")
    talk.check_prompt(turns[:-1])
    return LabelledResponse(turns[:-1], turns[-1:], bool(label), _others(values, "messages", "label"))


def _stepwise(values: dict[str, Any]) -> StepwiseExample:
    prompt = talk.parse_text(values["prompt"], "prompt")
    talk.check_prompt(prompt)
    steps, labels = values["completions"], values["labels"]
    for name, listed in (("completions", steps), ("labels", labels)):
        if not isinstance(listed, list | tuple) or not listed:
            raise RowError(f"`{name}` is not a list of one entry a step, or is empty")
    if len(steps) != len(labels):
        raise RowError(f"{len(steps)} steps in `completions` and {len(labels)} `labels`; one each is needed")
    for number, (step, label) in enumerate(zip(steps, labels, strict=True), 1):
        if not isinstance(step, str) or not step.strip():
            raise RowError(f"step {number} of `completions` is empty or no text")
        if not isinstance(label, bool | int | float) or not 0 <= label <= 1:
            raise RowError(f"label {number} is {label!r}; it must be true, false, or a number from 0 to 1")
    others = _others(values, "prompt", "completions", "labels")
    return StepwiseExample(prompt, tuple(steps), tuple(float(label) for label in labels), others)


def _preference(values: dict[str, Any]) -> PreferencePair:
    if values.get("prompt") is None or _carries_prompt(values):
        prompt, chosen, rejected = _implicit_prompt(values)
    else:
        prompt, chosen, rejected = _prompt_and_answers(values, "chosen", "rejected")
    if _stripped(chosen) == _stripped(rejected):
        raise RowError("`chosen` and `rejected` are the same, so the pair says nothing")
    margin = values.get("margin")
    if margin is not None:
        is_number = isinstance(margin, int | float) and not isinstance(margin, bool)
        if not is_number or not abs(margin) <= sys.float_info.max:  # a whole number may be too large for a float
            raise RowError(f"`margin` is {margin!r}; it must be a finite number")
        margin = float(margin)
    return PreferencePair(prompt, chosen, rejected, margin, _others(values, "prompt", "chosen", "rejected", "margin"))


def _prompt(values: dict[str, Any]) -> Prompt:
    prompt = talk.parse_text(values["prompt"], "prompt")
    talk.check_prompt(prompt)
    return Prompt(prompt, _others(values, "prompt"))


def _prompt_and_answers(values: dict[str, Any], *names: str) -> tuple[Text, ...]:
    """Explicit prompt and completions, checked and brought to one kind."""
    texts = [talk.parse_text(values[name], name) for name in ("prompt", *names)]
    talk.check_prompt(texts[0])
    for name, text in zip(names, texts[1:], strict=True):
        talk.check_completion(text, name)
    return talk.align(*texts)


def _carries_prompt(values: dict[str, Any]) -> bool:
    """Are the answers conversations that begin with a turn that is not the assistant's, thus with their prompt?"""
    chosen = values["chosen"]
    if not isinstance(chosen, list | tuple) or not chosen:
        return False
    first = talk.parse_messages(chosen[:1], "chosen")[0]
    return first.role != "assistant"


def _implicit_prompt(values: dict[str, Any]) -> tuple[Text, Text, Text]:
    prompt, chosen, rejected = talk.split_pair(
        *(talk.parse_text(values[name], name) for name in ("chosen", "rejected"))
    )
    talk.check_prompt(prompt)
    talk.check_completion(chosen, "chosen")
    talk.check_completion(rejected, "rejected")
    given = values.get("prompt")
    if given is not None:
        told = talk.parse_text(given, "prompt")
        matches = told == prompt or (
            isinstance(told, str) and any(isinstance(turn, Message) and turn.content == told for turn in prompt)
        )
        if not matches:
            raise RowError("`prompt` is not the beginning that `chosen` and `rejected` share; leave one of the two out")
    return prompt, chosen, rejected


def _stripped(text: Text) -> Any:
    return text.strip() if isinstance(text, str) else [(turn.role, turn.content.strip()) for turn in text]


def _others(values: dict[str, Any], *used: str) -> Columns:
    return {name: value for name, value in values.items() if name not in used}


_CONVERTERS: Mapping[str, Callable[[dict[str, Any]], Record]] = {
    "preference": _preference,
    "stepwise": _stepwise,
    "labelled": _labelled,
    "completion": _completion,
    "messages": _messages,
    "prompt": _prompt,
    "labelled_text": labelled_text,
    "labelled_tokens": labelled_tokens,
    "text": _text,
}
