"""Samples side by side: what the policy answered at the start, and what it answers now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accord.report.read import Sample

PAIRS = 6
EXTREMES = 3
LONGEST = 1600
"""Characters of a text that are shown."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A sample from the start and one from the end."""

    before: Sample | None
    after: Sample | None

    @property
    def same_prompt(self) -> bool:
        """Whether both answer the same prompt."""
        return self.before is not None and self.after is not None and self.before.prompt == self.after.prompt


def pair_up(first: Sequence[Sample], last: Sequence[Sample], limit: int = PAIRS) -> list[Pair]:
    """Pairs that answer the same prompt come first; what is missing is filled with different prompts."""
    if not first or not last:
        return [Pair(None, sample) for sample in [*last, *first][:limit]]
    waiting: dict[str, list[Sample]] = {}
    for sample in first:
        waiting.setdefault(sample.prompt, []).append(sample)
    same: list[Pair] = []
    seen: set[str] = set()
    for sample in last:
        # One pair a prompt: the answers of a group to one prompt would fill the page.
        if sample.prompt in waiting and sample.prompt not in seen:
            seen.add(sample.prompt)
            same.append(Pair(waiting[sample.prompt][0], sample))
    others = [
        Pair(before, after)
        for before, after in zip(_unseen(first, seen), _unseen(last, seen), strict=False)
    ]  # fmt: skip
    return [*same, *others][:limit]


def _unseen(samples: Sequence[Sample], seen: set[str]) -> list[Sample]:
    """One sample of each prompt that is not yet shown."""
    return list({sample.prompt: sample for sample in reversed(samples) if sample.prompt not in seen}.values())[::-1]


def extremes(last: Sequence[Sample], limit: int = EXTREMES) -> tuple[list[Sample], list[Sample]]:
    """The highest- and the lowest-scored samples; none is in both."""
    ranked = sorted((s for s in last if s.score is not None), key=lambda s: s.score or 0.0, reverse=True)
    count = min(limit, len(ranked) // 2)
    return (ranked[:count], ranked[::-1][:count]) if count else ([], [])


def shorten(text: str, longest: int = LONGEST) -> str:
    """The text, or its two ends with a note of how much is left out between them."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters …]\n{text[-half:]}"
