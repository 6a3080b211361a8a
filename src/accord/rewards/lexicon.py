"""Sentiment from words."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from accord.config import LexiconConfig
from accord.errors import AccordWarning, ConfigError
from accord.rewards.protocol import checked_scores
from accord.types import Rollout

WORD = re.compile(r"[^\W_]+(?:['’*+&/-]+[^\W_]+)*\+?")
"""A word: letters and digits, with apostrophes, hyphens and the like inside."""


class LexiconReward:
    """The sentiment of the response alone.

    Raises:
        ConfigError: vaderSentiment is not installed, or there is no such list, or a line of it cannot be read.
    """

    def __init__(self, config: LexiconConfig, label: str) -> None:
        self.config, self.label = config, label
        self._score = _vader() if config.words == "vader" else self._weighted
        self._weights = {} if config.words == "vader" else load_words(Path(config.words))

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One score for each rollout; see `RewardSource.score`."""
        return checked_scores(self.label, [self._score(rollout.response_text) for rollout in rollouts], rollouts)

    def _weighted(self, text: str) -> float:
        words = WORD.findall(text.casefold().replace("’", "'"))
        if self.config.once:
            words = list(dict.fromkeys(words))
        found = [self._weights[word] for word in words if word in self._weights]
        count = {"matches": len(found), "words": len(words), "none": 1}[self.config.divide_by]
        return sum(found) / count if found else 0.0


def _vader() -> Callable[[str], float]:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ConfigError("`lexicon: vader` needs the library vaderSentiment: pip install vaderSentiment") from error
    analyser = SentimentIntensityAnalyzer()
    return lambda text: float(analyser.polarity_scores(text)["compound"])


def load_words(path: Path) -> dict[str, float]:
    """Words and their weights, from a list or from a folder with an opinion lexicon.

    A line of a list is a word, a tab or spaces, and a number; what follows is not read (so the file of VADER is one, too).
    Lines that are empty or begin with `#` or `;` are left out.

    Raises:
        ConfigError: nothing there, or a line without a weight.
    """
    pair = [(path / "positive-words.txt", 1.0), (path / "negative-words.txt", -1.0)]
    if path.is_dir() and all(file.is_file() for file, _ in pair):
        weights = {word: weight for file, weight in pair for _, word in _lines(file)}
    elif path.is_file():
        weights = dict(_word_and_weight(path, number, line) for number, line in _lines(path))
    else:
        raise ConfigError(
            f"lexicon.words: {path} is neither `vader`, nor a file of words and weights, nor a folder with positive-words.txt "
            f"and negative-words.txt (looked in {Path.cwd()})"
        )
    if not weights:
        raise ConfigError(f"lexicon.words: {path} holds no words")
    unmatched = [word for word in weights if WORD.fullmatch(word) is None]
    if unmatched:
        warnings.warn(
            f"{path}: {len(unmatched)} of {len(weights)} entries are not one word, such as {unmatched[0]!r}, and never match",
            AccordWarning,
            stacklevel=2,
        )
    return weights


def _lines(path: Path) -> list[tuple[int, str]]:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")  # the opinion lexicon as it is distributed
    lines = [(number, line.strip().casefold()) for number, line in enumerate(text.splitlines(), 1)]
    return [(number, line) for number, line in lines if line and line[0] not in "#;"]


def _word_and_weight(path: Path, number: int, line: str) -> tuple[str, float]:
    word, _, rest = line.partition("\t") if "\t" in line else line.rpartition(" ")
    try:
        weight = float(rest.split()[0])
    except (IndexError, ValueError):
        weight = math.nan
    if not math.isfinite(weight) or not word.strip():
        raise ConfigError(f"{path}:{number}: a line is a word, a tab or a space, and a number (found: {line[:80]!r})")
    return word.strip().replace("’", "'"), weight
