"""A reward that costs next to nothing, so that the libraries' own work is what is timed."""

from __future__ import annotations

from typing import Any


def vowels(prompts: list[str], responses: list[str], **_: Any) -> list[float]:
    """The share of vowels among the characters of each response."""
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in responses]
