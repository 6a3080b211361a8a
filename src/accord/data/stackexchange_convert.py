"""From a dump or a file of questions with answers to a file of feedback, in a stream, with every row accounted for."""

from __future__ import annotations

import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from accord.data.sources import Rejection, RowError, count_reasons, stream_rows
from accord.data.stackexchange import (
    EQUAL,
    Answer,
    Outcome,
    Question,
    StackExchangeOptions,
    give_nothing,
    in_test,
    make_rows,
    markdown_converter,
    score,
    too_few,
)
from accord.data.stackexchange_dump import PostStore
from accord.data.stackexchange_rows import to_question
from accord.errors import ConfigError, DataError

Progress = Callable[[str, int, int | None], None]
"""Called with (stage, amount done, all there is): `reading` counts bytes of the file, `writing` questions."""
TELL_EVERY = 100
"""Questions between two calls."""
CHUNK = 64
"""Questions that a process converts at once."""
SHOWN = 20
"""Bad rows that are kept one by one; all of them are counted."""


@dataclass(slots=True)
class Tally:
    """total = used + left out, by reason."""

    total: int = 0
    used: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def adds_up(self) -> bool:
        """Is nothing lost?"""
        return self.total == self.used + self.left_out.total()


@dataclass(slots=True)
class StackExchangeReport:
    """What became of a dump; `rows.used` are its questions and answers (of a file of rows: its questions)."""

    path: str
    output: str
    format: str
    written: int = 0
    """Rows of the output."""
    rows: Tally = field(default_factory=Tally)
    questions: Tally = field(default_factory=Tally)
    answers: Tally = field(default_factory=Tally)
    pairs: Tally = field(default_factory=Tally)
    """Pairs of answers with different scores, of the questions that are used."""
    bad: list[Rejection] = field(default_factory=list)
    """The first few rows that break a rule."""


class Candidate(NamedTuple):
    """A question before its text is fetched."""

    id: int | str
    scores: tuple[float, ...]
    fault: str | None
    fetch: Callable[[], Question]


def _fault(candidate: Candidate, options: StackExchangeOptions) -> str | None:
    """Why a question gives nothing, as far as that is known without its text."""
    if candidate.fault is not None and not (options.keep_closed and candidate.fault == "closed"):
        return f"it is {candidate.fault}"
    if len(candidate.scores) < options.min_answers:
        return too_few(options)
    if options.format == "pairs" and len(set(candidate.scores)) < 2:
        return EQUAL
    if options.split != "all" and in_test(candidate.id, options.test_fraction) != (options.split == "test"):
        return f"it is not in the split {options.split}"
    return None


def convert_stackexchange(
    path: str | Path,
    output: str | Path,
    options: StackExchangeOptions | None = None,
    progress: Progress | None = None,
) -> StackExchangeReport:
    """Write the feedback of a dump, or of rows of questions with answers, as JSON lines.

    Args:
        path: Posts.xml (also .gz, .bz2) or a folder with it; or a .jsonl, .json or .parquet file, see `stackexchange_rows`.
        output: a new file; written aside and renamed, so it is complete or absent.
        options: what to write.
        progress: told how far the work is.

    Returns:
        Counts of everything read: used, or left out with the reason.

    Raises:
        ConfigError: the output is there already.
        DataError: the input cannot be read, a disk is full, or nothing is left to write.
    """
    options = options or StackExchangeOptions()
    path, output = Path(path).expanduser(), Path(output).expanduser()
    path = path / "Posts.xml" if path.is_dir() else path
    if output.exists():
        raise ConfigError(f"{output} exists already; give another --output, or remove it")
    report = StackExchangeReport(str(path), str(output), options.format)
    tell = progress or (lambda stage, done, total: None)
    is_dump = any(suffix in (".xml", ".7z", ".zip", ".zst", ".xz") for suffix in path.suffixes[-2:])
    if is_dump or options.content == "html":
        markdown_converter()  # now, and not after hours of reading
    candidates = _from_dump(path, report, tell) if is_dump else _from_rows(path, report, options, tell)
    aside = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("x", encoding="utf-8", newline="\n") as file, closing(candidates):
            for lines in _outcomes(candidates, report, options):
                file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        _refuse_nothing(report)
        aside.replace(output)
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            aside.unlink()
    return report


def _refuse_nothing(report: StackExchangeReport) -> None:
    if report.written == 0:
        reasons = {"rows": report.rows, "questions": report.questions, "answers": report.answers}
        told = "\n".join(
            f"  {name}: {tally.total:,}; left out: {dict(tally.left_out)}" for name, tally in reasons.items()
        )
        raise DataError(f"{report.path} gives nothing to write:\n{told}")


def _from_dump(path: Path, report: StackExchangeReport, tell: Progress) -> Generator[Candidate, None, None]:
    with closing(PostStore()) as store:
        size = path.stat().st_size if path.is_file() else None
        posts = store.fill(path, lambda done: tell("reading", done, size))
        report.rows.total, report.rows.used = posts.rows, posts.questions + posts.answers
        report.rows.left_out.update(posts.left_out)
        report.bad = posts.bad
        orphans = store.orphans()
        report.answers.total += orphans
        if orphans:
            report.answers.left_out["its question is not in the dump"] += orphans
        for number, stored in enumerate(store.questions(), 1):
            if number % TELL_EVERY == 0:
                tell("writing", number, posts.questions)
            scores = tuple(score(votes, id == stored.accepted) for id, votes in stored.votes)
            ranks = [votes for _, votes in stored.votes]
            yield Candidate(stored.id, scores, stored.fault, partial(_fetch, store, stored.id, scores, ranks))


def _fetch(store: PostStore, id: int, scores: tuple[int, ...], ranks: list[int]) -> Question:
    title, body, texts = store.text(id)
    return Question(id, title, body, tuple(map(Answer, texts, scores, ranks)))


def _from_rows(
    path: Path, report: StackExchangeReport, options: StackExchangeOptions, tell: Progress
) -> Generator[Candidate, None, None]:
    for number, row in enumerate(stream_rows(str(path)), 1):
        report.rows.total += 1
        if number % TELL_EVERY == 0:
            tell("writing", number, None)
        try:
            question = row if isinstance(row, Rejection) else to_question(row, number, options.content == "html")
        except RowError as error:
            question = Rejection(row.origin, str(error))
        if isinstance(question, Rejection):
            report.rows.left_out.update(count_reasons([question]))
            report.bad += [question] if len(report.bad) < SHOWN else []
            continue
        report.rows.used += 1
        scores = tuple(answer.score for answer in question.answers)
        yield Candidate(question.id, scores, None, partial(_itself, question))


def _itself(question: Question) -> Question:
    return question


def _outcomes(
    candidates: Iterator[Candidate], report: StackExchangeReport, options: StackExchangeOptions
) -> Iterator[list[str]]:
    """Lines of one used question after another, counted in the report."""
    for question, outcome in _converted(_wanted(candidates, report, options), options):
        if outcome.fault is None and report.questions.used == options.limit:
            outcome = give_nothing(Outcome(), question, _BEYOND)
        report.answers.used += outcome.used
        report.answers.left_out += outcome.left_out
        if outcome.fault is not None:
            report.questions.left_out[outcome.fault] += 1
            continue
        report.questions.used += 1
        report.written += len(outcome.lines)
        if options.format == "pairs":
            report.pairs.total += outcome.pairs
            report.pairs.used += len(outcome.lines)
            beyond = outcome.pairs - len(outcome.lines)
            report.pairs.left_out += Counter({f"beyond {options.max_pairs} of a question": beyond})
        yield outcome.lines


_BEYOND = "it is beyond the limit"


def _wanted(
    candidates: Iterator[Candidate], report: StackExchangeReport, options: StackExchangeOptions
) -> Iterator[Question]:
    """The questions whose text is needed; the others are counted."""
    for candidate in candidates:
        report.questions.total += 1
        report.answers.total += len(candidate.scores)
        fault = _fault(candidate, options)
        if fault is None and report.questions.used == options.limit:
            fault = _BEYOND
        if fault is None:
            yield candidate.fetch()
        else:
            report.questions.left_out[fault] += 1
            report.answers.left_out += Counter({"its question is left out": len(candidate.scores)})


def _converted(questions: Iterator[Question], options: StackExchangeOptions) -> Iterator[tuple[Question, Outcome]]:
    """Each question with its outcome, in order; several processes share the work, a few chunks ahead of the reader."""
    if options.processes == 1:
        yield from ((question, make_rows(question, options)) for question in questions)
        return
    waiting: deque[tuple[list[Question], Future[list[Outcome]]]] = deque()
    # Spawned, since a fork would copy an open database.
    spawn = get_context("spawn")
    quiet = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that commands
    with ProcessPoolExecutor(options.processes, spawn, initializer=signal.signal, initargs=quiet) as pool:
        while chunk := _take(questions):
            waiting.append((chunk, pool.submit(_make_many, chunk, options)))
            if len(waiting) > 2 * options.processes:
                yield from _finished(waiting)
        while waiting:
            yield from _finished(waiting)


def _finished(waiting: deque[tuple[list[Question], Future[list[Outcome]]]]) -> Iterator[tuple[Question, Outcome]]:
    chunk, future = waiting.popleft()
    try:
        outcomes = future.result(timeout=600)
    except (TimeoutError, OSError, RuntimeError) as error:
        name = type(error).__name__
        raise DataError(
            f"a process that turns HTML into Markdown failed ({name}: {error}); try --processes 1"
        ) from error
    yield from zip(chunk, outcomes, strict=True)


def _take(questions: Iterator[Question]) -> list[Question]:
    return list(islice(questions, CHUNK))


def _make_many(questions: list[Question], options: StackExchangeOptions) -> list[Outcome]:
    return [make_rows(question, options) for question in questions]
