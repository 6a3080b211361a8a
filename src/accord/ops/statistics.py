"""Means and variances that can be merged: over ranks, over batches, over a whole run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

SumOverRanks: TypeAlias = Callable[[Tensor], Tensor]
"""Adds a tensor up over all ranks. With one rank it is the identity."""


def one_rank(tensor: Tensor) -> Tensor:
    """The sum over one rank."""
    return tensor


def moments(values: Tensor, mask: Tensor, sum_over_ranks: SumOverRanks = one_rank) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and variance (divided by the count) of the masked values over all ranks.

    Two passes, mean first: the one-pass formula E[x^2] - E[x]^2 loses all digits when the mean is large.

    Returns:
        Three float64 scalars; mean and variance are 0 when nothing is counted.
    """
    chosen = values.double().masked_fill(~mask, 0.0)
    count = sum_over_ranks(mask.sum().double())
    mean = sum_over_ranks(chosen.sum()) / count.clamp(min=1)
    variance = sum_over_ranks(((chosen - mean).masked_fill(~mask, 0.0)).square().sum()) / count.clamp(min=1)
    return count, mean, variance


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, sum_over_ranks: SumOverRanks = one_rank) -> Tensor:
    """Scale the masked values to variance 1 and, if `shift_mean`, to mean 0; elsewhere 0.

    (x - mean) / sqrt(var + 1e-8), with the statistics of all masked values of all ranks (Huang et al. 2024,
    arXiv:2403.17031, detail 7; classic TRL adds the mean back when `shift_mean` is false, and so do we).
    """
    _, mean, variance = moments(values, mask, sum_over_ranks)
    scale = torch.rsqrt(variance + 1e-8)
    centred = (values.double() - mean) * scale
    whitened = centred if shift_mean else centred + mean
    return whitened.to(values.dtype).masked_fill(~mask, 0.0)


class RunningMoments:
    """Mean and variance of all values seen (Chan, Golub and LeVeque 1979: merging of counts, means and squares)."""

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self.squares = 0.0
        """Sum of squared distances from the mean."""

    def update(self, values: Tensor, sum_over_ranks: SumOverRanks = one_rank) -> None:
        """Take in values of any shape."""
        count_t, mean_t, variance_t = moments(values, torch.ones_like(values, dtype=torch.bool), sum_over_ranks)
        count, mean, squares = float(count_t), float(mean_t), float(variance_t * count_t)
        if count == 0:
            return
        total, distance = self.count + count, mean - self.mean
        self.mean += distance * count / total
        self.squares += squares + distance**2 * self.count * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation (divided by the count); 1 while fewer than two values, or only equal ones, were seen."""
        deviation = float((self.squares / self.count) ** 0.5) if self.count > 1 else 0.0
        return deviation or 1.0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint's state."""
        self.count, self.mean, self.squares = (float(state[key]) for key in ("count", "mean", "squares"))
