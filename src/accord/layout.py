"""How a batch lies before a model that computes what sequences have in common once.

A `TokenBatch` says what the sequences are: each whole, end to end. A layout says which of their tokens are computed. Where a
sequence begins with tokens that an earlier one begins with too, it takes their place in that one, and only the rest of it is
laid out: a prompt stands before the first of its answers, and the others consist of their answers alone. Any tree of prefixes
comes out of this: a system prompt before several prompts, each before several answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy
import torch
from torch import Tensor

from accord.packing import neighbours, worth_sharing

Path = list[tuple[int, int]]
"""What precedes a segment: of segment i its first n tokens, then of another, and so on."""


@dataclass(frozen=True)
class Layout:
    """The tokens that are computed, U of the T of a batch, and where each of the T finds itself among them.

    They lie in segments end to end, in the order of the batch: of each sequence the tokens that no earlier one had, if any. A
    segment's tokens attend to those on its path and to each other.
    """

    source_U: Tensor
    """Which token of the batch is computed, int64 [U]."""
    place_T: Tensor
    """Where each token of the batch lies among the computed ones, int64 [T]."""
    bounds: tuple[int, ...]
    """Segments: 0, the end of the first, ..., U."""
    paths: tuple[tuple[tuple[int, int], ...], ...]
    """Of each segment: (segment i, n), ... : before its own keys come the first n of segment i's, and so on."""

    @property
    def tokens(self) -> int:
        """U"""
        return self.bounds[-1]

    @property
    def shares(self) -> bool:
        """Whether any token is computed for more than one sequence."""
        return self.tokens < len(self.place_T)

    @property
    def uses_U(self) -> Tensor:
        """How many sequences take each computed token: int64 [U]."""
        return torch.bincount(self.place_T, minlength=self.tokens)

    def keys(self) -> tuple[list[int], list[int]]:
        """Bounds of the keys of each segment where they are gathered end to end, and which computed token each is."""
        places: list[int] = []
        bounds = [0]
        for (start, end), path in zip(pairwise(self.bounds), self.paths, strict=True):
            for segment, count in path:
                places += range(self.bounds[segment], self.bounds[segment] + count)
            places += range(start, end)
            bounds.append(len(places))
        return bounds, places

    def to(self, device: torch.device | str) -> Layout:
        """A copy with its tensors on a device."""
        return replace(self, source_U=self.source_U.to(device), place_T=self.place_T.to(device))

    @classmethod
    def of(cls, codes: Sequence[numpy.ndarray]) -> Layout:
        """The layout of sequences; see `packing.neighbours` for their codes, and `worth_sharing` for what is shared."""
        order, common = neighbours(codes)
        lengths = [len(code) for code in codes]
        taken = [0] * len(codes)
        for n, alike in zip(order, common, strict=True):
            taken[n] = worth_sharing(alike, lengths[n])
        own = [length - less for length, less in zip(lengths, taken, strict=True)]
        first_T = numpy.cumsum([0, *lengths])
        starts = numpy.cumsum([0, *own])
        number = numpy.cumsum([0, *(count > 0 for count in own)])  # of the segment that a sequence's own tokens are
        places: list[numpy.ndarray] = [numpy.empty(0, int)] * len(codes)
        paths: list[Path] = [[]] * len(codes)
        before = order[0]
        for n in order:
            rest = numpy.arange(starts[n], starts[n + 1])
            places[n] = numpy.concatenate([places[before][: taken[n]], rest]) if taken[n] else rest
            paths[n] = _first([*paths[before], (int(number[before]), own[before])], taken[n])
            before = n
        source = [numpy.arange(first_T[n] + taken[n], first_T[n + 1]) for n in range(len(codes))]
        return cls(
            source_U=torch.from_numpy(numpy.concatenate(source)),
            place_T=torch.from_numpy(numpy.concatenate(places)),
            bounds=(0, *(int(starts[n + 1]) for n in range(len(codes)) if own[n])),
            paths=tuple(tuple(paths[n]) for n in range(len(codes)) if own[n]),
        )


def _first(path: Path, tokens: int) -> Path:
    """The part of a path that holds its first `tokens` tokens."""
    result: Path = []
    for segment, count in path:
        count = min(count, tokens)
        if count:
            result.append((segment, count))
        tokens -= count
    return result
