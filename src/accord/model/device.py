"""The one place that chooses a device."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

from accord.config import PlacementConfig
from accord.errors import ConfigError
from accord.machine import machine_memory
from accord.model.threads import default_threads


def choose_device(placement: PlacementConfig) -> torch.device:
    """The device of a placement; also sets the number of CPU threads.

    Raises:
        ConfigError: the device does not exist here.
    """
    default = default_threads() if placement.threads is None else None
    if placement.threads is not None:
        torch.set_num_threads(placement.threads)
    elif default is not None:  # never more than somebody chose before
        torch.set_num_threads(min(default, torch.get_num_threads()))
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


def memory_bytes(device: torch.device) -> int:
    """Memory that a device has, in bytes: of an accelerator, or of the machine and what this process's control group may use."""
    return machine_memory() if device.type == "cpu" else int(torch.accelerator.get_memory_info(device)[1])


@contextmanager
def visiting(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Modules that wait in main memory are on a device for as long as they are used; where that is main memory itself, nothing
    moves."""
    modules = list(modules)
    for module in modules:
        module.to(device)
    try:
        yield
    finally:
        for module in modules:
            module.to("cpu")


def return_freed_memory() -> None:
    """Give freed memory back to the machine, where the C library is glibc, which otherwise keeps what lies between blocks in use:
    measured, twice the size of an NF4 model after loading it, whose codes lie where full-precision copies were."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """Peak memory of each phase: what tensors took of an accelerator, or what this process took of the machine (`VmHWM`, which
    Linux sets back on `echo 5 > /proc/self/clear_refs`, see proc(5)). Where neither can be set back, a phase's peak is that of
    all phases so far."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.phases: dict[str, float] = {}
        """Highest of each phase, GiB."""

    @property
    def highest(self) -> float:
        """Of all phases, GiB."""
        return max(self.phases.values(), default=0.0)

    def lap(self, phase: str) -> float:
        """Peak of the phase that ends now and began at the last call, or with the process; GiB."""
        peak = self._peak()
        self.phases[phase] = max(self.phases.get(phase, 0.0), peak)
        if self.device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return peak

    def _peak(self) -> float:
        if self.device.type != "cpu":
            return torch.accelerator.max_memory_allocated(self.device) / 2**30
        status = Path("/proc/self/status")
        lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 2**30
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
