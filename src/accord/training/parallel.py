"""Sums over ranks. One rank needs none; under torchrun each rank holds the whole model and a share of the data."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from accord.errors import ConfigError

TIMEOUT = timedelta(minutes=30)
"""A rank that waits longer than this for the others fails, and names the operation it waited in."""


def check_torchrun() -> None:
    """See whether there is a group to join.

    Raises:
        ConfigError: the process was not started by torchrun.
    """
    if "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "placement.type: torchrun needs a process started by torchrun: "
            "torchrun --nproc-per-node 2 -m accord ppo recipe.yaml"
        )


def _leave() -> None:
    """Leave the group before the interpreter goes: threads of gloo that are still there then abort the process, though the run
    was whole."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Ranks:
    """The processes that learn together. Their gradients are added, since losses are divided by counts over all ranks."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def from_environment(cls) -> Ranks:
        """Join the group that torchrun started.

        Raises:
            ConfigError: the process was not started by torchrun.
        """
        check_torchrun()
        if not dist.is_initialized():
            dist.init_process_group(timeout=TIMEOUT)  # a backend for each device: counts live on the CPU
            atexit.register(_leave)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this rank writes the files and speaks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, the same on each."""
        return self._reduce(tensor, "SUM")

    def max(self, tensor: Tensor) -> Tensor:
        """The greatest of each element over all ranks."""
        return self._reduce(tensor, "MAX")

    def _reduce(self, tensor: Tensor, how: str) -> Tensor:
        if self.size == 1:
            return tensor
        result = tensor.clone()
        dist.all_reduce(result, op=getattr(dist.ReduceOp, how))
        return result

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up gradients over all ranks, in one message. A rank without one counts as zero; a parameter that has none on
        any rank keeps none, as with one rank, or the optimiser would take a step for it."""
        parameters = list(parameters)
        if self.size == 1 or not parameters:
            return
        has = self.max(torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)).tolist()
        gradients = []
        for parameter in (p for p, some in zip(parameters, has, strict=True) if some):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        if not gradients:
            return
        flat = torch.cat([gradient.flatten().float() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def gather(self, item: Any) -> list[Any]:
        """What each rank has, in the order of the ranks, on all of them."""
        if self.size == 1:
            return [item]
        items = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def join(self, values: Tensor) -> tuple[Tensor, slice]:
        """One-dimensional values of all ranks end to end, in the order of the ranks, and where this rank's lie."""
        parts = self.gather(values.tolist())
        start = sum(len(part) for part in parts[: self.rank])
        joined = torch.tensor([value for part in parts for value in part], dtype=values.dtype, device=values.device)
        return joined, slice(start, start + len(values))

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def share(self, items: list[Any]) -> list[Any]:
        """This rank's part of a list that all ranks have."""
        return items[self.rank :: self.size]
