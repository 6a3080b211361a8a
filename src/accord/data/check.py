"""What is in a file of feedback: the format, every bad row, the lengths, and which commands it can feed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING

from accord.config import RECIPES, RolloutRecipe
from accord.data.chat import Encoder
from accord.data.formats import Loaded, check_rows, columns_of
from accord.data.sources import Rejection, RowError, count_reasons, read_rows, refuse_split
from accord.errors import DataError
from accord.types import (
    Example,
    LabelledResponse,
    LabelledText,
    LabelledTokens,
    PreferencePair,
    Record,
    StepwiseExample,
    Text,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from transformers import PreTrainedTokenizerBase

ROLLOUTS = tuple(command for command, recipe in RECIPES.items() if issubclass(recipe, RolloutRecipe))
"""Commands that take the prompt of any row and sample the answers themselves."""
FEEDS = {
    "text": ("sft",),
    "messages": ("sft", "csft", *ROLLOUTS),
    "completion": ("sft", "csft", *ROLLOUTS),
    "preference": ("reward", "dpo", "orpo", "simpo", "cpo", "kto", "bco", "csft", "sft", *ROLLOUTS),
    "stepwise": ("reward", *ROLLOUTS),
    "labelled": ("kto", "bco", "csft", "sft", *ROLLOUTS),
    "prompt": ROLLOUTS,
    "labelled_text": ("classify", "sft"),
    "labelled_tokens": ("classify",),
}
"""Commands that can use each format, the one it is made for first; see `_feeds`."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of one part of the rows."""

    part: str
    """`prompt`, `completion`, `chosen`, `rejected` or `text`."""
    unit: str
    """`characters` or `tokens`."""
    min: int
    median: float
    p95: int
    """The smallest length that at least 95 % of the rows do not exceed."""
    max: int


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All that `accord data check` knows about a file."""

    path: str
    split: str
    format: str
    rows: int
    usable: int
    problems: list[Rejection]
    """Every row that cannot be used, with origin and reason."""
    columns: dict[str, int]
    """Rows that have a value, by column as it stands in the file."""
    extra_columns: list[str]
    """Columns that only travel along, to reward functions."""
    lengths: list[Lengths]
    labels: tuple[int, int] | None
    """(thumbs up, thumbs down) of labelled rows."""
    duplicate_prompts: int
    """Rows whose prompt an earlier row has already."""
    example: dict[str, str]
    """Parts of the first usable row, shortened."""
    feeds: tuple[str, ...]
    """Commands that can use the file."""
    notes: list[str]
    """What to do or to know."""


def check(path: str, split: str = "train", tokenizer: PreTrainedTokenizerBase | None = None) -> CheckReport:
    """Read a whole file and say what is in it; token lengths too if a tokenizer is given.

    Raises:
        DataError: the source cannot be read, no format fits its columns, or no row can be used.
    """
    refuse_split(path, split)
    rows, broken = read_rows(path, split)
    loaded = check_rows(rows, path, rejections=broken)
    records, problems = loaded.records, loaded.rejections
    prompts = [prompt for record in records if (prompt := _parts(record).get("prompt"))]
    lengths = _lengths("characters", [_characters(record) for record in records])
    notes = []
    if tokenizer is not None:
        try:
            counts, refused = _count_tokens(loaded, Encoder(tokenizer))
            lengths += _lengths("tokens", counts)
            problems = problems + refused
        except DataError as error:
            notes.append(f"no token lengths: {error}")
    labels = [record.label for record in records if isinstance(record, LabelledResponse)]
    report = CheckReport(
        path=path,
        split=split,
        format=loaded.format,
        rows=loaded.rows,
        usable=loaded.rows - len(problems),
        problems=problems,
        columns=columns_of(rows),
        extra_columns=sorted({name for record in records for name in record.columns}),
        lengths=lengths,
        labels=(sum(labels), len(labels) - sum(labels)) if labels else None,
        duplicate_prompts=len(prompts) - len(set(prompts)),
        example={name: _shortened(text) for name, text in _parts(records[0]).items()},
        feeds=_feeds(loaded),
        notes=notes,
    )
    notes.extend(_advice(report, records, has_template=bool(getattr(tokenizer, "chat_template", None))))
    return report


def _feeds(loaded: Loaded) -> tuple[str, ...]:
    """Commands for these rows: `accord csft` learns bare answers only if a column says how good each is."""
    unscored = any(isinstance(record, Example) and "score" not in record.columns for record in loaded.records)
    return tuple(command for command in FEEDS[loaded.format] if command != "csft" or not unscored)


def _advice(report: CheckReport, records: Sequence[Record], has_template: bool) -> list[str]:
    notes = []
    if report.problems:
        notes.append(f"bad rows: {len(report.problems)}. Mend them, or go on without them: --data.on_bad_row skip")
    if not has_template and any(not isinstance(text, str) for record in records for text in _parts(record).values()):
        notes.append("conversations need a chat template; for a model without one set --model.chat_template chatml")
    if report.labels and min(report.labels) == 0:
        notes.append("all labels are the same, so nothing tells good from bad")
    return notes


def _parts(record: Record) -> dict[str, Text]:
    if isinstance(record, LabelledText):
        return {"text": record.text}
    if isinstance(record, LabelledTokens):
        return {"text": " ".join(record.tokens)}
    parts: dict[str, Text] = {"prompt": record.prompt} if record.prompt else {}
    if isinstance(record, PreferencePair):
        return parts | {"chosen": record.chosen, "rejected": record.rejected}
    if isinstance(record, Example | LabelledResponse):
        return parts | {"completion": record.completion}
    if isinstance(record, StepwiseExample):
        return parts | {"completion": "\n".join(record.steps)}
    return parts


def _characters(record: Record) -> dict[str, int]:
    return {
        name: len(text) if isinstance(text, str) else sum(len(turn.content) for turn in text)
        for name, text in _parts(record).items()
    }


def _count_tokens(loaded: Loaded, encoder: Encoder) -> tuple[list[dict[str, int]], list[Rejection]]:
    """Tokens of each part as training sees it (BOS and stop token included), and the rows that the template refuses."""
    counts, refused = [], []
    for record, origin in zip(loaded.records, loaded.origins, strict=True):
        try:
            counts.append({name: _tokens(encoder, record, name, text) for name, text in _parts(record).items()})
        except RowError as error:
            refused.append(Rejection(origin, str(error)))
    return counts, refused


def _tokens(encoder: Encoder, record: Record, part: str, text: Text) -> int:
    if part == "prompt":
        return len(encoder.encode_prompt(text))
    if isinstance(record, LabelledText | LabelledTokens):
        return len(encoder.encode_text(str(text))[0])
    return sum(encoder.encode_example(record.prompt, text).target_mask)


def _lengths(unit: str, counts: Sequence[dict[str, int]]) -> list[Lengths]:
    values: dict[str, list[int]] = {}
    for row in counts:
        for part, length in row.items():
            values.setdefault(part, []).append(length)
    return [_summary(part, unit, sorted(found)) for part, found in values.items()]


def _summary(part: str, unit: str, ordered: list[int]) -> Lengths:
    p95 = ordered[-(-95 * len(ordered) // 100) - 1]  # nearest rank: the ceil(0.95 n)-th
    return Lengths(part, unit, ordered[0], statistics.median(ordered), p95, ordered[-1])


def _shortened(text: Text, width: int = 240) -> str:
    if not isinstance(text, str):
        text = "\n".join(f"[{turn.role}] {turn.content.strip()}" for turn in text)
    return text if len(text) <= width else text[: width // 2] + " … " + text[-width // 2 :]


def render(report: CheckReport, console: Console, shown: int = 10) -> None:
    """Print the report: at most `shown` bad rows one by one, all of them by reason."""
    from rich.text import Text as Words

    good = report.usable == report.rows
    console.print(Words.assemble((report.path, "bold"), f"  ·  format {report.format}  ·  {report.rows:,} rows"))
    usable = f"{report.usable:,} usable" if report.problems else "all usable"
    console.print(Words.assemble(("✓ " if good else "! ", "green" if good else "yellow"), usable, *_tally(report)))
    console.print()
    console.print(_overview(report))
    if report.lengths:
        console.print(_length_table(report.lengths))
    if report.problems:
        console.print(Words("\nRows that cannot be used", style="bold yellow"))
        for reason, count in count_reasons(report.problems).items():
            console.print(Words.assemble((f"{count:>6,} × ", "yellow"), reason))
        for problem in report.problems[:shown]:
            console.print(Words.assemble("       ", (problem.origin, "cyan"), f"  {problem.reason}"))
        if len(report.problems) > shown:
            console.print(Words(f"       and {len(report.problems) - shown:,} more", style="dim"))
    console.print(Words("\nThe first row", style="bold"))
    for part, text in report.example.items():
        console.print(Words.assemble((f"{part}\n", "cyan"), text))
    console.print(Words("\nWhat it can feed", style="bold"))
    split = "" if report.split == "train" else f" --data.split {report.split}"
    split += " --algorithm.level token" if report.format == "labelled_tokens" else ""
    sampling = [command for command in report.feeds if command in ROLLOUTS]
    for command in report.feeds:
        if command in sampling[1:]:
            continue
        others = f"  (or {', '.join(sampling[1:])})" if command in sampling else ""
        line = ("  ", (f"accord {command}", "green"), f" --data.path {quote(report.path)}{split}", (others, "dim"))
        console.print(Words.assemble(*line))
    if report.notes:
        console.print(Words("\nWhat to do", style="bold"))
        for note in report.notes:
            console.print(Words(f"  - {note}"))


def _tally(report: CheckReport) -> list[str]:
    tally = []
    if report.problems:
        tally.append(f", {len(report.problems):,} not")
    if report.duplicate_prompts:
        tally.append(f"  ·  {report.duplicate_prompts:,} prompts repeated")
    if report.labels is not None:
        up, down = report.labels
        tally.append(f"  ·  labels {up:,} true, {down:,} false ({up / (up + down):.0%} true)")
    return tally


def _overview(report: CheckReport) -> RenderableType:
    from rich.table import Table
    from rich.text import Text as Words

    table = Table("column", "rows with a value", "", box=None, padding=(0, 2), header_style="dim")
    for name, count in report.columns.items():
        use = "extra, handed to reward functions" if name in report.extra_columns else ""
        table.add_row(Words(name, style="cyan"), f"{count:,}", Words(use, style="dim"))
    return table


def _length_table(lengths: Sequence[Lengths]) -> RenderableType:
    from rich.table import Table

    table = Table("length", "unit", box=None, padding=(0, 2), header_style="dim", title_justify="left")
    for name in ("min", "median", "95 %", "max"):
        table.add_column(name, justify="right")
    for row in lengths:
        table.add_row(row.part, row.unit, f"{row.min:,}", f"{row.median:,g}", f"{row.p95:,}", f"{row.max:,}")
    return table
