"""Which sequences begin alike, and which share a micro-batch. No torch."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heapreplace
from itertools import pairwise

import numpy

SHORTEST = 16
"""Fewer tokens in common are computed again: attention behind a prefix costs more than they do."""
OWN_TO_SHARED = 16
"""So many own tokens a shared one may have behind it, for the same reason: their attention needs a mask."""
KEYS_PER_TOKEN = 2048
"""Attending to so many keys takes about as long as the rest of a token's way through a model. A rough figure, of use only to
make micro-batches even: it grows with the model's width."""


def neighbours(codes: Sequence[numpy.ndarray]) -> tuple[list[int], list[int]]:
    """An order in which sequences that begin alike stand together.

    Args:
        codes: of each sequence, one non-negative integer a token (its id, or id and position in one), each [length].

    Returns:
        The order (equal sequences as they come), and how many of its first tokens each has in common with the one before it in
        that order; no earlier one has more. O(n log n) comparisons of sequences.
    """
    # Of big-endian numbers the bytes compare as the numbers do.
    keys = [code.astype(">u8").tobytes() for code in codes]
    order = sorted(range(len(codes)), key=keys.__getitem__)
    common = [0] * len(order[:1]) + [_in_common(codes[a], codes[b]) for a, b in pairwise(order)]
    return order, common


def _in_common(first: numpy.ndarray, second: numpy.ndarray) -> int:
    length = min(len(first), len(second))
    differ = first[:length] != second[:length]
    return int(differ.argmax()) if differ.any() else length


def worth_sharing(common: int, length: int) -> int:
    """How many of the tokens in common a sequence of this length takes from another: all or, where that does not pay, none."""
    return common if common >= SHORTEST and OWN_TO_SHARED * common >= length - common else 0


def micro_batches(
    codes: Sequence[numpy.ndarray], capacity: int, *, unit: int = 1, shares: bool = False
) -> list[list[int]]:
    """Group sequences into few micro-batches of at most `capacity` computed tokens, each about as costly as the others.

    Where prefixes are shared, sequences that begin alike go together and their prefix counts once. If they are too many for one
    micro-batch they are cut into as few as possible, and each of these computes the prefix again. A unit that is longer than
    `capacity` stands alone. O(n log n); the same input gives the same result.

    Args:
        codes: see `neighbours`.
        capacity: tokens of a micro-batch.
        unit: so many sequences, one after the other, stay together: 2 for pairs.
        shares: whether prefixes are computed once.

    Returns:
        Indices of sequences; in a micro-batch, and among them, in the order of the input.
    """
    units = [codes[first : first + unit] for first in range(0, len(codes), unit)]
    order, common = list(range(len(units))), [0] * len(units)
    if shares:
        order, common = neighbours([members[0] for members in units])
    units = [units[u] for u in order]
    saved = [worth_sharing(alike, _longest(members)) for alike, members in zip(common, units, strict=True)]
    tokens = [sum(map(len, members)) - (_saved_inside(members) if shares else 0) for members in units]
    costs = [
        own - less + sum((len(code) ** 2 - less**2) / (2 * KEYS_PER_TOKEN) for code in members)
        for own, less, members in zip(tokens, saved, units, strict=True)
    ]
    runs = _runs(tokens, saved, capacity)
    sizes = [sum(tokens[u] for u in run) - sum(saved[u] for u in run[1:]) for run in runs]
    bins = even_bins(sizes, [sum(costs[u] for u in run) for run in runs], capacity)
    chosen = sorted(sorted(order[u] for run in members for u in runs[run]) for members in bins)
    return [[unit * u + j for u in members for j in range(unit)] for members in chosen]


def _longest(members: Sequence[numpy.ndarray]) -> int:
    return max(map(len, members))


def _saved_inside(members: Sequence[numpy.ndarray]) -> int:
    """Tokens that the sequences of a unit take from each other."""
    return sum(worth_sharing(_in_common(a, b), _longest(members)) for a, b in pairwise(members))


def _runs(tokens: Sequence[int], saved: Sequence[int], capacity: int) -> list[range]:
    """Cut neighbours into families that share nothing with each other, and a family that is too large into as few and as even
    runs as possible."""
    starts = [place for place, less in enumerate(saved) if less == 0]
    result: list[range] = []
    for start, end in pairwise([*starts, len(tokens)]):
        family = range(start, end)
        cut = _cut(family, tokens, saved, capacity)
        low, high = 1, capacity  # the least capacity that needs no more runs
        while len(cut) > 1 and low < high:
            middle = (low + high) // 2
            narrower = _cut(family, tokens, saved, middle)
            low, high = (low, middle) if len(narrower) == len(cut) else (middle + 1, high)
        result += _cut(family, tokens, saved, high) if len(cut) > 1 else cut
    return result


def _cut(family: range, tokens: Sequence[int], saved: Sequence[int], capacity: int) -> list[range]:
    """A family in runs, each as long as it can be."""
    runs, start, size = [], family.start, tokens[family.start]
    for place in family[1:]:
        size += tokens[place] - saved[place]
        if size > capacity:
            runs.append(range(start, place))
            start, size = place, tokens[place]
    return [*runs, range(start, family.stop)]


def even_bins(sizes: Sequence[int], costs: Sequence[float], capacity: int) -> list[list[int]]:
    """As many bins as `best_fit_decreasing` takes, with costs as even as can easily be had.

    Costliest first, each item goes into the cheapest bin (at most 4/3 of the least possible maximum, Graham 1969, if sizes
    allow it). Where that would overfill a bin, or is not better, the bins are those of best fit.

    Args:
        sizes: of each item, in tokens.
        costs: of each item, in any unit.
        capacity: size of a bin, in tokens.

    Returns:
        Bins of item indices; in a bin, and among bins, in the order of the input.
    """
    tight = best_fit_decreasing(sizes, capacity)
    even: list[list[int]] = [[] for _ in tight]
    rooms, heap = [capacity] * len(tight), [(0.0, b) for b in range(len(tight))]
    for index in sorted(range(len(sizes)), key=lambda i: (-costs[i], i)):
        cost, chosen = heap[0]
        if even[chosen] and sizes[index] > rooms[chosen]:
            return tight
        even[chosen].append(index)
        rooms[chosen] -= sizes[index]
        heapreplace(heap, (cost + costs[index], chosen))

    def costliest(bins: list[list[int]]) -> float:
        return max((sum(costs[i] for i in members) for members in bins), default=0.0)

    return _in_order(even) if costliest(even) < costliest(tight) else tight


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Group items into few bins of at most `capacity`: longest first, each into the fullest bin that still has room.

    Uses at most 11/9 of the optimal number of bins plus four (Johnson 1973). An item longer than `capacity` gets a bin of
    its own. Runs in O(n log n) and gives the same bins for the same input.

    Args:
        lengths: size of each item, in tokens.
        capacity: size of a bin, in tokens.

    Returns:
        Bins of item indices; in a bin, and among bins, in the order of the input.
    """
    bins: list[list[int]] = []
    open_bins: list[tuple[int, int]] = []  # (room left, bin), sorted, so that the tightest fit is one bisection away
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        need = lengths[index]
        at = bisect_left(open_bins, (need, -1))
        if at < len(open_bins):
            room, chosen = open_bins.pop(at)
            bins[chosen].append(index)
        else:
            room, chosen = max(capacity, need), len(bins)
            bins.append([index])
        if room > need:
            insort(open_bins, (room - need, chosen))
    return _in_order(bins)


def _in_order(bins: list[list[int]]) -> list[list[int]]:
    return sorted((sorted(members) for members in bins), key=lambda members: members[0])
