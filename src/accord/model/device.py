"""The one place that chooses a device."""

from __future__ import annotations

import ctypes
import os
import resource
import sys

import torch

from accord.config import PlacementConfig
from accord.errors import ConfigError


def choose_device(placement: PlacementConfig) -> torch.device:
    """The device of a placement; also sets the number of CPU threads.

    Raises:
        ConfigError: the device does not exist here.
    """
    if placement.threads is not None:
        torch.set_num_threads(placement.threads)
    if placement.allocator == "lean":
        return_at_once()
    if placement.device == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return _own(found or torch.device("cpu"), placement)
    try:
        device = torch.device(placement.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"placement.device: {placement.device!r} cannot be used here: {reason}") from error
    return _own(device, placement)


MMAP_THRESHOLD = -3
"""mallopt(3), M_MMAP_THRESHOLD."""
LEAN_FROM = 128 << 10
"""Bytes from which a tensor gets pages of its own: glibc's first threshold, which it then raises to up to 32 MiB."""


def return_at_once() -> bool:
    """Let the C library give each tensor of 128 KiB or more pages of its own, which go back to the system with the tensor.

    By default glibc keeps them in its heap after the first such tensor was freed. PyTorch's are aligned to 64 bytes, and glibc
    looks for a free piece that is larger by that and one chunk; so the hole that a tensor left is too small for the next one
    of its size, and the heap grows although it has room. Returns whether the C library took the setting.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return bool(set_option(MMAP_THRESHOLD, LEAN_FROM))


def _own(device: torch.device, placement: PlacementConfig) -> torch.device:
    """Under torchrun, the accelerator that belongs to this process, also as the default of torch's own calls."""
    if device.type == "cpu" or placement.type != "torchrun":
        return device
    index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
    torch.accelerator.set_device_index(index)
    return torch.device(device.type, index)


def memory_of(device: torch.device) -> int | None:
    """Bytes of an accelerator's memory; `None` for the CPU."""
    return None if device.type == "cpu" else int(torch.accelerator.get_memory_info(device)[1])


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far, GiB: what tensors took of an accelerator, or what this process took of the machine."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
