"""Reward functions to copy from. Use one with `--reward examples/rewards.py:brevity`.

Accord calls a function once per iteration, with keywords: the prompts, the responses, and every column of the data's rows
that the function names (or all of them, if it takes `**columns`). Each is a list with one entry a response. It gives back one
number a response, or `None` where it has nothing to say. Anything else stops the run with a message that names the sample.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

PRAISE = frozenset(
    ["brilliant", "charming", "excellent", "fresh", "great", "moving", "radiant", "superb", "warm", "wonderful"]
)
BLAME = frozenset(["awful", "boring", "clumsy", "dreadful", "dull", "flat", "hollow", "lifeless", "tedious", "weak"])


def brevity(prompts: Sequence[str], responses: Sequence[str], **_: Any) -> list[float]:
    """1 for a response of up to 60 characters, then falling to 0 at 240."""
    return [min(1.0, max(0.0, (240 - len(response)) / 180)) for response in responses]


def positive_words(prompts: Sequence[str], responses: Sequence[str], **_: Any) -> list[float]:
    """Words of praise minus words of blame, each word counted once so that repeating it earns nothing."""
    words = [frozenset(re.findall(r"[a-z]+", response.casefold())) for response in responses]
    return [float(len(said & PRAISE) - len(said & BLAME)) for said in words]


def keyword(
    prompts: Sequence[str], responses: Sequence[str], keyword: Sequence[str | None] | None = None
) -> list[float | None]:
    """1 if a response holds the word in the row's column `keyword`, else 0; `None` for rows without one."""
    wanted = keyword or [None] * len(responses)
    return [None if word is None else float(word in response) for word, response in zip(wanted, responses, strict=True)]


async def judged(prompts: Sequence[str], responses: Sequence[str], **_: Any) -> list[float]:
    """All responses judged at the same time, as one would ask a server; here the server is a sleep and a count of words."""
    return list(await asyncio.gather(*(_ask(response) for response in responses)))


async def _ask(response: str) -> float:
    async with asyncio.timeout(10):  # a wait without a deadline can hold a run for ever
        await asyncio.sleep(0.01)
        return min(len(response.split()) / 20, 1.0)
