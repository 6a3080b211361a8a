"""Answers beside prompts that they do not answer: what KTO measures the policy's drift on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accord.data.chat import TokenSequence
from accord.data.encode import EncodedLabelled
from accord.errors import DataError


def with_mismatched(rows: Sequence[EncodedLabelled], limit: int) -> list[EncodedLabelled]:
    """Each row with its prompt and another row's answer as well: that of the next row, cyclically, with another prompt (after one
    answer of a pair comes the other, which does answer the prompt), or of the next row where all have one prompt.

    Args:
        rows: those of a whole step, of all ranks.
        limit: longest sequence, in tokens; an answer that would pass it behind another prompt loses its end.

    Raises:
        DataError: one row alone has no other's answer.
    """
    if len(rows) < 2:
        raise DataError("a prompt needs the answer of another row beside it, and there is one row alone")
    others = _others([_prompt(row.sequence) for row in rows])
    return [
        replace(row, mismatched=_joined(row.sequence, rows[other].sequence, limit))
        for row, other in zip(rows, others, strict=True)
    ]


def _others(prompts: Sequence[tuple[int, ...]]) -> list[int]:
    """For each place the next one, cyclically, that holds something else; the next one if none does."""
    count = len(prompts)
    others = [(place + 1) % count for place in range(count)]
    if len(set(prompts)) == 1:
        return others
    for place in [*reversed(range(count))] * 2:  # once more for what goes on at the other end
        after = (place + 1) % count
        others[place] = others[after] if prompts[place] == prompts[after] else after
    return others


def _joined(row: TokenSequence, other: TokenSequence, limit: int) -> TokenSequence:
    prompt, start = _prompt(row), other.target_mask.index(True)
    ids = prompt + other.input_ids[start:]
    mask = (False,) * len(prompt) + other.target_mask[start:]
    return TokenSequence(ids[:limit], mask[:limit])


def _prompt(row: TokenSequence) -> tuple[int, ...]:
    return row.input_ids[: row.target_mask.index(True)]
