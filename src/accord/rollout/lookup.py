"""Drafts by looking n-grams up: what followed the last time the same few tokens stood in the prompt or the response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Speculation:
    """How drafts are made."""

    ngram: int
    """So many last tokens must have stood before in the same order."""
    tokens: int
    """Longest draft."""


class Lookup:
    """One sequence, searchable by n-grams (prompt look-up decoding: Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding).

    Args:
        ids: the prompt.
        ngram: length of what is looked up.
    """

    def __init__(self, ids: Sequence[int], ngram: int) -> None:
        self.ngram = ngram
        self.ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where its last but newest occurrence ends
        for token in ids:
            self.append(token)

    def append(self, token: int) -> None:
        """One more token. The n-gram that ends before it becomes known: something follows it now."""
        if len(self.ids) >= self.ngram:
            self._after[tuple(self.ids[-self.ngram :])] = len(self.ids)
        self.ids.append(token)

    def draft(self, most: int) -> list[int]:
        """What followed the last n-gram when it stood before, at most so many tokens; empty if it never did."""
        found = self._after.get(tuple(self.ids[-self.ngram :])) if most > 0 else None
        return [] if found is None else self.ids[found : found + most]
