"""Global random generators: set from a run's seed, and kept for a caller who has a use of their own for them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


def seed_everything(seed: int, iteration: int = -1) -> None:
    """Set every global generator from (seed, iteration), so that no generator's state has to be kept; -1 is before the
    first iteration, when the models are made."""
    number = int(numpy.random.SeedSequence((seed, iteration + 1)).generate_state(1)[0])
    random.seed(number)
    numpy.random.seed(number)
    torch.manual_seed(number)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the global generators that `seed_everything` sets back where they were."""
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])
