"""Which items belong to which iteration."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch

from accord.errors import ConfigError

T = TypeVar("T")
FINGERPRINTED = 500
"""Items, at least, that tell one set from another."""


def order_seed(seed: int, number: int) -> int:
    """Seed of one order of many, such as that of an epoch, by a run's seed of any size; torch takes no more than 64 bits."""
    return (seed * 1_000_003 + number) % 2**64


class Stream(Generic[T]):
    """Endless passes over items, each pass in a new order. The batch of an iteration is a function of (seed, iteration), so
    a resumed run needs no state and cannot see an item twice or skip one (unless it is given more epochs than before: a short
    last batch stays short).

    Args:
        items: what to draw from.
        batch_size: items of an iteration.
        seed: of the orders.
        epochs: stop after so many passes; the last batch then has what is left. `None` never stops.
        ranks: processes that share each batch. The last batch is cut so that each gets as many items as the others.
    """

    def __init__(
        self, items: Sequence[T], batch_size: int, seed: int, epochs: float | None = None, ranks: int = 1
    ) -> None:
        if not items:
            raise ValueError("a stream needs at least one item")
        self.items, self.batch_size, self.seed = items, batch_size, seed
        if batch_size % ranks:
            raise ConfigError(f"train.batch_size ({batch_size}) must be a multiple of the number of ranks ({ranks})")
        self.length = None if epochs is None else max(ranks, round(epochs * len(items)) // ranks * ranks)
        self.fingerprint = _fingerprint(items)
        """Of the items as they were given: with others a run would not go on as it began."""
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    @property
    def iterations(self) -> int:
        """Number of batches; only for a stream that ends."""
        assert self.length is not None
        return math.ceil(self.length / self.batch_size)

    def batch(self, iteration: int) -> list[T]:
        """The items of one iteration, from 0."""
        start = iteration * self.batch_size
        end = start + self.batch_size if self.length is None else min(start + self.batch_size, self.length)
        return [self._item(place) for place in range(start, end)]

    def _item(self, place: int) -> T:
        epoch, within = divmod(place, len(self.items))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(order_seed(self.seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self.items), generator=generator)
        return self.items[int(self._order[within])]


def _fingerprint(items: Sequence[Any]) -> str:
    """How many there are, and a hash of some of them, spread evenly."""
    shown = items[:: max(1, len(items) // FINGERPRINTED)]
    return f"{len(items)} {hashlib.sha256(repr(shown).encode()).hexdigest()[:16]}"
