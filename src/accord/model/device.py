"""The one place that chooses a device."""

from __future__ import annotations

import os

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
    if placement.device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if accelerator is not None and placement.type == "torchrun":
            return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(placement.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"placement.device: {placement.device!r} cannot be used here: {reason}") from error
    return device
