"""The tasks of `learning.py`: prompts to train on, prompts held out, and a reward that both libraries call as it is."""

from __future__ import annotations

import random
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ADDITION = "Question: {a} + {b}?\nAnswer:"


def addition(prompts: list[str], responses: list[str], **_: Any) -> list[float]:
    """1 where the response begins with the sum, else 0."""
    return [float(_first_number(response) == _sum(prompt)) for prompt, response in zip(prompts, responses, strict=True)]


def _first_number(response: str) -> int | None:
    found = re.match(r"\s*(\d+)", response)
    return int(found.group(1)) if found else None


def _sum(prompt: str) -> int:
    found = re.search(r"(\d) \+ (\d)\?", prompt)
    assert found is not None, prompt
    return int(found.group(1)) + int(found.group(2))


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def sentiment(prompts: list[str], responses: list[str], **_: Any) -> list[float]:
    """VADER's compound sentiment of each response, from -1 to 1 (vaderSentiment 3.3.2)."""
    return [_vader().polarity_scores(response)["compound"] for response in responses]


@dataclass(frozen=True)
class Task:
    """What is learnt."""

    name: str
    reward: Callable[..., list[float]]
    train: list[str]
    held_out: list[str]
    max_new_tokens: int
    samples: int
    """Responses to each held-out prompt when a model is judged."""


def load_task(name: str, tokenizer: Any, data: Path) -> Task:
    """A task by name.

    Args:
        name: `addition` or `sentiment`.
        tokenizer: all prompts of a task have the same number of its tokens, so that no library pads any.
        data: folder with `movie_reviews/` (for `sentiment`).
    """
    if name == "addition":
        prompts = [ADDITION.format(a=a, b=b) for a in range(10) for b in range(10)]
        random.Random(0).shuffle(prompts)
        return Task(name, addition, prompts[:80], prompts[80:], 4, 16)
    openings = _openings(tokenizer, data)
    return Task(name, sentiment, openings[:400], openings[400:500], 16, 2)


def _openings(tokenizer: Any, data: Path, tokens: int = 8) -> list[str]:
    """The first tokens of sentences of film reviews that survive decoding and encoding."""
    archive = next((data / "movie_reviews").glob("*.zip"))
    kept: list[str] = []
    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if name.endswith(".txt"))
        random.Random(0).shuffle(names)
        for name in names:
            for line in files.read(name).decode("utf-8", "replace").splitlines():
                text = line.strip().capitalize()
                ids = tokenizer(text, add_special_tokens=False).input_ids
                opening = tokenizer.decode(ids[:tokens])
                if len(ids) >= 20 and tokenizer(opening, add_special_tokens=False).input_ids == ids[:tokens]:
                    kept.append(opening)
                    break
            if len(kept) == 500:
                break
    assert len(kept) == 500, f"{archive} gave {len(kept)} openings, 500 are needed"
    return kept
