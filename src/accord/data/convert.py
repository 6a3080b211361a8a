"""Records of one kind as another: a preference pair is also an example to imitate, and a prompt to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from accord.data import conversation as talk
from accord.data.sources import RowError
from accord.errors import DataError
from accord.types import (
    Example,
    LabelledResponse,
    LabelledText,
    LabelledTokens,
    PreferencePair,
    Prompt,
    Record,
    StepwiseExample,
)

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Converted(Generic[R]):
    """What came of a conversion; each record given is a source or is left out."""

    records: list[R]
    sources: list[int]
    """For each record, the index of the record that it was made from."""
    left_out: list[tuple[int, str]]
    """(index, reason) of each record that gives none of the wanted kind."""


def convert(records: Sequence[Record], to: type[R]) -> Converted[R]:
    """PreferencePair -> Example (the chosen answer), Prompt, or LabelledResponse (two); LabelledResponse -> Example
    (thumbs up alone) or Prompt; LabelledText -> Example; StepwiseExample or Example -> Prompt; anything to itself.

    Raises:
        DataError: one kind cannot become the other, or an example without a prompt should become a prompt.
    """
    result: Converted[R] = Converted([], [], [])
    for index, record in enumerate(records):
        made = _convert(record, to)
        if isinstance(made, str):
            result.left_out.append((index, made))
            continue
        result.records.extend(made)
        result.sources.extend([index] * len(made))
    return result


def _convert(record: Record, to: type[R]) -> tuple[R, ...] | str:
    """The records made of one, or why there are none."""
    made: tuple[Record, ...] | str
    match record:
        case _ if isinstance(record, to):
            made = (record,)
        case PreferencePair(prompt, chosen, columns=columns) if to is Example:
            made = (Example(prompt, chosen, columns),)
        case PreferencePair(prompt, chosen, rejected, columns=columns) if to is LabelledResponse:
            made = (LabelledResponse(prompt, chosen, True, columns), LabelledResponse(prompt, rejected, False, columns))
        case LabelledResponse(prompt, completion, label, columns) if to is Example:
            made = (Example(prompt, completion, columns),) if label else "its label is false: not something to imitate"
        case LabelledText(text, label, columns) if to is Example:
            made = (Example("", text, {**columns, "label": label}),)
        case PreferencePair() | LabelledResponse() | StepwiseExample() | Example() if to is Prompt:
            made = _to_prompt(record)
        case _:
            raise DataError(
                f"{_NEEDS.get(to, to.__name__)} cannot be made of {type(record).__name__} rows{_hint(record, to)}"
            )
    return made  # type: ignore[return-value]


def _hint(record: Record, to: type) -> str:
    """A setting with which the rows could be used."""
    if isinstance(record, StepwiseExample):
        return "; for `accord reward` set algorithm.level: step"
    if isinstance(record, LabelledTokens) and to is LabelledText:
        return "; for `accord classify` set algorithm.level: token"
    if isinstance(record, LabelledText) and to is LabelledTokens:
        return "; for `accord classify` set algorithm.level: sequence"
    return ""


_NEEDS = {
    LabelledText: "a LabelledText (it needs a text and its class: columns `text`, `label`)",
    LabelledTokens: "a LabelledTokens (it needs words and their classes: columns `tokens`, `labels`, lists of one length)",
    PreferencePair: "a PreferencePair (it needs two answers to one prompt: columns `prompt`, `chosen`, `rejected`)",
    LabelledResponse: "a LabelledResponse (it needs a verdict: columns `prompt`, `completion`, `label`)",
    StepwiseExample: "a StepwiseExample (it needs judged steps: columns `prompt`, `completions`, `labels`, lists of one length)",
    Example: "an Example (it needs an answer: columns `prompt`, `completion`)",
}


def _to_prompt(record: PreferencePair | LabelledResponse | StepwiseExample | Example) -> tuple[Prompt] | str:
    if record.prompt == "":
        raise DataError(
            f"text that is learnt as a whole ({type(record).__name__} with an empty prompt) cannot become a Prompt: no "
            "part of it is a question that a model could be asked; give rows with a `prompt` column"
        )
    try:
        talk.check_prompt(record.prompt)
    except RowError as error:
        return str(error)
    return (Prompt(record.prompt, record.columns),)
