"""Rewards that are rules: a regular expression, tags, a length, repetition."""

from __future__ import annotations

import re
from collections.abc import Sequence

import regex

from accord.config import FormatConfig, LengthConfig, RegexConfig, RepetitionConfig
from accord.errors import RewardError
from accord.rewards.protocol import checked_scores, describe
from accord.types import Rollout


class RegexReward:
    """1 where the response matches, else 0."""

    def __init__(self, config: RegexConfig, label: str) -> None:
        self.config, self.label = config, label
        self._pattern = regex.compile(config.pattern)

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One score for each rollout; see `RewardSource.score`."""
        return checked_scores(self.label, [self._one(index, r) for index, r in enumerate(rollouts)], rollouts)

    def _one(self, index: int, rollout: Rollout) -> float:
        find = self._pattern.search if self.config.match == "search" else self._pattern.fullmatch
        try:
            return float(find(rollout.response_text, timeout=self.config.timeout) is not None)
        except TimeoutError:
            raise RewardError(
                f"reward {self.label}: the expression {self.config.pattern!r} took longer than {self.config.timeout:g} s on "
                f"{describe(index, rollout)}; nested repetitions such as (a+)+ take exponential time: rewrite it"
            ) from None


class FormatReward:
    """1 where the response is the tagged parts and nothing else; or the share of tags that occur exactly once."""

    def __init__(self, config: FormatConfig, label: str) -> None:
        self.config, self.label = config, label
        # No part may hold a tag of the format, so that a second <think> is an error and not text.
        marks = [mark for tag in config.tags for mark in (f"<{tag}>", f"</{tag}>")]
        inside = rf"(?:(?!{'|'.join(map(re.escape, marks))}).)*"
        parts = [rf"<{re.escape(tag)}>{inside}</{re.escape(tag)}>" for tag in config.tags]
        self._whole = re.compile(r"\s*" + r"\s*".join(parts) + r"\s*", re.DOTALL)
        self._marks = marks

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One score for each rollout; see `RewardSource.score`."""
        return checked_scores(self.label, [self._one(rollout.response_text) for rollout in rollouts], rollouts)

    def _one(self, text: str) -> float:
        if self.config.partial:
            return sum(text.count(mark) == 1 for mark in self._marks) / len(self._marks)
        return float(self._whole.fullmatch(text) is not None)


class LengthReward:
    """0 within the bounds, minus distance / scale outside, never below -1."""

    def __init__(self, config: LengthConfig, label: str) -> None:
        self.config, self.label = config, label

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One score for each rollout; see `RewardSource.score`."""
        return checked_scores(self.label, [self._one(rollout) for rollout in rollouts], rollouts)

    def _one(self, rollout: Rollout) -> float:
        config, text = self.config, rollout.response_text
        count = {
            "tokens": len(rollout.response_ids),
            "words": len(text.split()),
            "characters": len(text),
        }[config.unit]
        least, most = config.target or config.min, config.target or config.max
        if least is not None and count < least:
            return -min(1.0, (least - count) / (config.scale or least))
        if most is not None and count > most:
            return -min(1.0, (count - most) / (config.scale or most))
        return 0.0


class RepetitionReward:
    """Minus the share of n-grams that are repeated."""

    def __init__(self, config: RepetitionConfig, label: str) -> None:
        self.config, self.label = config, label

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One score for each rollout; see `RewardSource.score`."""
        scores = []
        for rollout in rollouts:
            units = rollout.response_ids if self.config.unit == "tokens" else rollout.response_text.casefold().split()
            scores.append(-repeated(units, self.config.n))
        return checked_scores(self.label, scores, rollouts)


def repeated(units: Sequence[object], n: int) -> float:
    """Share of the n-grams of a sequence that repeat an earlier one; 0 without any n-gram (arXiv:1908.04319, section 6.1)."""
    grams = [tuple(units[start : start + n]) for start in range(len(units) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
