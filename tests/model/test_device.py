"""The one place that chooses a device."""

from __future__ import annotations

import pytest
import torch

from accord.config import PlacementConfig
from accord.errors import ConfigError
from accord.model.device import choose_device


def test_a_device_that_is_named_is_taken_or_refused() -> None:
    assert choose_device(PlacementConfig(device="cpu")) == torch.device("cpu")
    with pytest.raises(ConfigError, match="'warp' cannot be used here"):
        choose_device(PlacementConfig(device="warp"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="'cuda' cannot be used here"):
            choose_device(PlacementConfig(device="cuda"))


def test_auto_takes_the_accelerator_there_is() -> None:
    available = torch.accelerator.is_available()
    expected = torch.accelerator.current_accelerator() if available else torch.device("cpu")
    assert choose_device(PlacementConfig(device="auto")) == expected


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        choose_device(PlacementConfig(device="cpu", threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
