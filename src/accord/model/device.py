"""The one place that chooses a device."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch

from accord.config import PlacementConfig
from accord.errors import ConfigError
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


def _own(device: torch.device, placement: PlacementConfig) -> torch.device:
    """Under torchrun, the accelerator that belongs to this process, also as the default of torch's own calls."""
    if device.type == "cpu" or placement.type != "torchrun":
        return device
    index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
    torch.accelerator.set_device_index(index)
    return torch.device(device.type, index)


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far, GiB: what tensors took of an accelerator, or what this process took of the machine."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def memory_bytes(device: torch.device) -> int:
    """Memory that a device has, in bytes: of an accelerator, or of the machine and what this process's control group may use."""
    if device.type != "cpu":
        return int(torch.accelerator.get_memory_info(device)[1])
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine
