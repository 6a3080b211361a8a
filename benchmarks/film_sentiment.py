"""A reward of film reviews: VADER's compound sentiment of the response, from -1 to 1 (vaderSentiment 3.3.2, MIT licence)."""

from __future__ import annotations

from functools import cache
from typing import Any

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def positive(prompts: list[str], responses: list[str], **_: Any) -> list[float]:
    """Compound sentiment of each response."""
    return [_analyzer().polarity_scores(response)["compound"] for response in responses]
