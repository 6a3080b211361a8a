"""Random ragged inputs in float64, so that identities hold to the last digits, and ways to cut them."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor


class Ragged:
    """Streams of 7 sequences of random length and mask, end to end."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.lengths = [draw.randint(2, 12) for _ in range(7)]
        self.size = sum(self.lengths)
        self.generator = torch.Generator().manual_seed(seed)
        self.mask = torch.tensor([t > 0 and draw.random() < 0.6 for length in self.lengths for t in range(length)])
        self.mask[1] = True
        self.mask[-self.lengths[-1] :] = False  # a sequence without any target

    def normal(self, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return shift + scale * torch.randn(self.size, generator=self.generator, dtype=torch.float64)

    def logprobs(self) -> Tensor:
        return -self.normal().abs() - 0.05

    @property
    def count(self) -> Tensor:
        return self.mask.sum()

    def cut(self, into: int) -> list[Tensor]:
        """Token indices of micro-batches: the sequences dealt out at random, whole."""
        draw = random.Random(self.size)
        bounds = [sum(self.lengths[:n]) for n in range(len(self.lengths) + 1)]
        hands: list[list[int]] = [[] for _ in range(into)]
        for n in draw.sample(range(len(self.lengths)), len(self.lengths)):
            hands[n % into] += range(bounds[n], bounds[n + 1])
        return [torch.tensor(hand) for hand in hands if hand]


@pytest.fixture(params=range(4))
def ragged(request: pytest.FixtureRequest) -> Ragged:
    return Ragged(request.param)
