"""Which sequences share a micro-batch."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


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
    return sorted((sorted(members) for members in bins), key=lambda members: members[0])
