"""Matrix products of 16-bit numbers on processors that have no instructions for them.

There PyTorch multiplies them in plain loops (see `accord.machine.fast_types`). Turned into float32 a block at a time, the same
numbers are multiplied ten times as fast forward and forty times backward, and added up more exactly; they stay in 16 bits
where they are kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from accord.machine import fast_types

BLOCK_ELEMENTS = 1 << 22
"""Elements of a weight that are in float32 at once: 16 MiB."""


def fast_type(own: torch.dtype, device: torch.device) -> torch.dtype:
    """A type of numbers, or float32 where they are on a CPU that has no instructions to multiply them."""
    slow = device.type == "cpu" and own.itemsize == 2 and str(own).removeprefix("torch.") not in fast_types()
    return torch.float32 if slow else own


def product_type(like: Tensor) -> torch.dtype:
    """The type in which numbers like these are best multiplied where they are."""
    return fast_type(like.dtype, like.device)


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """x W^T + b, [T, out] in the type of the weight. No gradient of its own where it is computed in blocks."""
    x_TI = x_TI.to(weight_OI.dtype)
    wide = product_type(weight_OI)
    if wide == weight_OI.dtype:
        return functional.linear(x_TI, weight_OI, bias_O)
    x_wide, y_TO = x_TI.to(wide), x_TI.new_empty(len(x_TI), len(weight_OI))
    for rows in _blocks(weight_OI):
        y_TO[:, rows] = functional.linear(
            x_wide, weight_OI[rows].to(wide), None if bias_O is None else bias_O[rows].to(wide)
        )
    return y_TO


def input_gradient(grad_TO: Tensor, weight_OI: Tensor) -> Tensor:
    """The gradient of x from that of x W^T, [T, in] in the type of the weight."""
    grad_TO = grad_TO.to(weight_OI.dtype)
    wide = product_type(weight_OI)
    if wide == weight_OI.dtype:
        return grad_TO @ weight_OI
    total = torch.zeros(len(grad_TO), weight_OI.shape[1], dtype=wide, device=grad_TO.device)
    for rows in _blocks(weight_OI):
        total.addmm_(grad_TO[:, rows].to(wide), weight_OI[rows].to(wide))
    return total.to(weight_OI.dtype)


def _blocks(weight_OI: Tensor) -> Iterator[slice]:
    rows = max(1, BLOCK_ELEMENTS // weight_OI.shape[1])
    for start in range(0, len(weight_OI), rows):
        yield slice(start, min(start + rows, len(weight_OI)))
