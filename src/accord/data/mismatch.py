"""Answers beside prompts that they do not answer: what KTO measures the policy's drift on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accord.data.chat import TokenSequence
from accord.data.encode import EncodedLabelled
from accord.errors import DataError


def with_mismatched(rows: Sequence[EncodedLabelled], limit: int) -> list[EncodedLabelled]:
    """Each row with its prompt and the next row's answer as well; the last one has the first one's.

    Args:
        rows: those of a whole step, of all ranks.
        limit: longest sequence, in tokens; an answer that would pass it behind another prompt loses its end.

    Raises:
        DataError: one row alone has no other's answer.
    """
    if len(rows) < 2:
        raise DataError("a prompt needs the answer of another row beside it, and there is one row alone")
    others = [*rows[1:], rows[0]]
    return [
        replace(row, mismatched=_joined(row.sequence, other.sequence, limit))
        for row, other in zip(rows, others, strict=True)
    ]


def _joined(row: TokenSequence, other: TokenSequence, limit: int) -> TokenSequence:
    cut, start = row.target_mask.index(True), other.target_mask.index(True)
    ids = row.input_ids[:cut] + other.input_ids[start:]
    mask = (False,) * cut + other.target_mask[start:]
    return TokenSequence(ids[:limit], mask[:limit])
