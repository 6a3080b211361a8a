"""Where the steps of a sampled response end."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def step_ends(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, separator: str) -> tuple[int, ...]:
    """Index of the last token of each step, as `Encoder.encode_steps` has it for rows of feedback.

    A step ends at the last token that lies within it and the separator behind it, and the last step at the end of the response,
    its stop token included. White space between two separators is no step, nor is what stands behind the last one if it is white
    space alone: then the step before it is the last.

    Args:
        ids: the response's tokens, at least one.
        tokenizer: of the policy.
        separator: the text between two steps.
    """

    def text_of(count: int) -> str:
        return str(tokenizer.decode(list(ids[:count]), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    text = text_of(len(ids))
    ends: list[int] = []
    start = 0
    while (found := text.find(separator, start)) >= 0:
        edge = found + len(separator)
        if text[start:found].strip():
            # The number of tokens whose text ends at the edge or before it; texts of beginnings grow with their length.
            whole = bisect_right(range(1, len(ids) + 1), edge, key=lambda count: len(text_of(count)))
            if whole > 0 and whole - 1 not in ends:
                ends.append(whole - 1)
        start = edge
    last = len(ids) - 1
    if text[start:].strip() or not ends:
        return (*ends, last) if last not in ends else tuple(ends)
    return (*ends[:-1], last)
