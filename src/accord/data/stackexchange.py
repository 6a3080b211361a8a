"""Stack Exchange questions with answers as feedback: the recipe of Askell et al. 2021 (arXiv:2112.00861), as StackLLaMA
and the dataset stack-exchange-preferences use it.

score = round(log2(1 + votes)), plus 1 if the asker accepted the answer; -1, and nothing else, if the votes are negative.
A question gives at most `max_pairs` pairs of answers with different scores; equal scores are no pair. The text is
`Question: ...`, an empty line, `Answer: ...`. The prompt ends before the space behind `Answer:` and the answer begins with
it, since tokenizers of the BPE kind join a space to the word behind it: a prompt that ended in a space would end in a token
that no training text has at that place.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from typing import Any, Literal

from accord.errors import ConfigError, DataError


@dataclass(frozen=True)
class StackExchangeOptions:
    """What to make of the questions."""

    format: Literal["pairs", "sft", "prompts"] = "pairs"
    """`pairs`: prompt, chosen, rejected. `sft`: prompt and the best answer. `prompts`: prompt alone."""
    max_pairs: int = 10
    """Most pairs of one question; the seed draws among more."""
    min_answers: int = 2
    """Fewer answers, and the question is left out."""
    limit: int | None = None
    """Use at most so many questions, the first ones."""
    split: Literal["all", "train", "test"] = "all"
    """Which questions, by a hash of their id alone: a question is in one split whatever the format and the seed."""
    test_fraction: float = 0.05
    """Share of the questions in `test`."""
    margin: bool = True
    """Write the difference of scores as `margin`, which the reward loss then demands (StackLLaMA has none)."""
    keep_closed: bool = False
    """Use closed questions, too."""
    content: Literal["html", "markdown"] = "html"
    """What the texts of rows are; a dump is always HTML."""
    seed: int = 0
    processes: int = 1
    """Processes that turn HTML into Markdown."""

    def __post_init__(self) -> None:
        rules = {
            "max_pairs must be 1 or more": self.max_pairs >= 1,
            "min_answers must be 0 or more": self.min_answers >= 0,
            "pairs need min_answers of 2 or more": self.format != "pairs" or self.min_answers >= 2,
            "sft needs min_answers of 1 or more": self.format != "sft" or self.min_answers >= 1,
            "limit must be 1 or more": self.limit is None or self.limit >= 1,
            "test_fraction must be above 0 and below 1": 0 < self.test_fraction < 1,
            "processes must be 1 or more": self.processes >= 1,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ConfigError("; ".join(broken))


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer."""

    text: str
    score: float
    rank: float = 0.0
    """Breaks ties between equal scores where the best answer is wanted: the votes."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answers, as they were found."""

    id: int | str
    title: str
    """Plain text."""
    body: str
    answers: tuple[Answer, ...]
    html: bool = True
    """Are body and answers HTML?"""
    has_scores: bool = True
    """False where it is only known which of two answers is better."""


@dataclass(slots=True)
class Outcome:
    """What one question gives."""

    lines: list[str] = field(default_factory=list)
    fault: str | None = None
    """Why it gives nothing."""
    used: int = 0
    """Answers that stand in the lines."""
    left_out: Counter[str] = field(default_factory=Counter)
    """The other answers."""
    pairs: int = 0
    """Pairs with different scores; those beyond `lines` were not drawn."""


def score(votes: int, accepted: bool) -> int:
    """Askell et al. 2021, arXiv:2112.00861: round(log2(1 + votes)) + 1 if accepted; -1 if votes are negative.

    Args:
        votes: upvotes less downvotes, which is all that a dump tells.
        accepted: the asker marked the answer as the one that helped.
    """
    if votes < 0:
        return -1
    return round(math.log2(1 + votes)) + int(accepted)  # never half-way: no power of 2 lies at k + 1/2


def template(question: str) -> str:
    """The prompt; an answer follows as one space and its text."""
    return f"Question: {question}\n\nAnswer:"


def in_test(question: int | str, fraction: float) -> bool:
    """Is the question held out? Decided by its id alone."""
    digest = hashlib.sha256(str(question).encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


@cache
def markdown_converter() -> Any:
    """What turns HTML into Markdown.

    Raises:
        DataError: the extra `stackexchange` is not installed.
    """
    try:
        from bs4 import MarkupResemblesLocatorWarning
        from markdownify import MarkdownConverter
    except ImportError as error:
        raise DataError(
            'HTML is turned into Markdown by the package markdownify, which is not installed: pip install "accord[stackexchange]"'
        ) from error
    warnings.filterwarnings("ignore", category=MarkupResemblesLocatorWarning)
    # Authors write Markdown without escapes, and code names are full of underscores.
    return MarkdownConverter(
        heading_style="ATX",
        bullets="-",
        escape_asterisks=False,
        escape_underscores=False,
        code_language_callback=_code_language,
    )


def _code_language(element: Any) -> str:
    """`py` for the class `lang-py` of a block of code."""
    names = [name.removeprefix("lang-") for name in element.get("class") or () if name.startswith("lang-")]
    return names[0] if names and names[0] != "none" else ""


def to_markdown(html: str) -> str | None:
    """HTML of a post as Markdown; `None` if it is nested too deeply to be a post.

    Raises:
        DataError: the extra `stackexchange` is not installed.
    """
    try:
        return str(markdown_converter().convert(html)).strip()
    except RecursionError:
        return None


EMPTY, NESTED = "its text is empty", "its HTML is nested too deeply"
EQUAL = "all its answers have the same score"


def make_rows(question: Question, options: StackExchangeOptions) -> Outcome:
    """The output lines of one question, and what was left out of it."""
    convert = to_markdown if question.html else str.strip
    outcome = Outcome()
    body = convert(question.body)
    if not body:
        return give_nothing(outcome, question, NESTED if body is None else EMPTY)
    answers = []
    for answer in question.answers:
        text = convert(answer.text) if options.format != "prompts" else answer.text
        if text:
            answers.append(Answer(text, answer.score, answer.rank))
        else:
            outcome.left_out[NESTED if text is None else EMPTY] += 1
    if len(answers) < options.min_answers:
        return give_nothing(outcome, question, too_few(options))
    title = " ".join(question.title.split())
    row = {"prompt": template(f"{title}\n\n{body}" if title else body), "question_id": question.id}
    if options.format == "pairs":
        _add_pairs(outcome, question, answers, row, options)
    elif options.format == "sft":
        best = max(answers, key=lambda answer: (answer.score, answer.rank))  # the earliest of equals
        outcome.lines = [_line(row | {"completion": f" {best.text}"})]
        outcome.used = 1
        outcome.left_out["not the best of its question"] += len(answers) - 1
    else:
        outcome.lines = [_line(row)]
        outcome.left_out["prompts have no answers"] += len(answers)
    return outcome


def _add_pairs(
    outcome: Outcome, question: Question, answers: list[Answer], row: dict[str, Any], options: StackExchangeOptions
) -> None:
    different = [
        (i, j) if answers[i].score > answers[j].score else (j, i)
        for i, j in combinations(range(len(answers)), 2)
        if answers[i].score != answers[j].score and answers[i].text != answers[j].text
    ]
    if not different:
        give_nothing(outcome, question, EQUAL)
        return
    drawn = different
    if len(different) > options.max_pairs:
        # Seeded with text, which is hashed the same way everywhere; the draw of one question depends on no other.
        generator = random.Random(f"{options.seed}:{question.id}")
        drawn = [different[k] for k in sorted(generator.sample(range(len(different)), options.max_pairs))]
    for better, worse in drawn:
        pair: dict[str, Any] = {"chosen": f" {answers[better].text}", "rejected": f" {answers[worse].text}"}
        if options.margin and question.has_scores:
            pair |= {"margin": answers[better].score - answers[worse].score}
        outcome.lines.append(_line(row | pair))
    outcome.pairs = len(different)
    outcome.used = len({k for pair in drawn for k in pair})
    outcome.left_out["in none of the pairs drawn"] += len(answers) - outcome.used


def give_nothing(outcome: Outcome, question: Question, fault: str) -> Outcome:
    """The outcome of a question that is left out, with all its answers."""
    outcome.fault = fault
    outcome.left_out["its question is left out"] += len(question.answers) - outcome.left_out.total()
    return outcome


def too_few(options: StackExchangeOptions) -> str:
    """The reason, in words."""
    return f"it has fewer than {options.min_answers} answers"


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
