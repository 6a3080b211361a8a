"""The one place that chooses a device."""

from __future__ import annotations

import subprocess
import sys

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


def test_lean_memory_goes_back_at_once(tmp_path):
    """In a process of its own: a tensor that is freed leaves the process, whatever was freed before it."""
    code = (
        "import torch; from accord.config import PlacementConfig; from accord.model.device import choose_device\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "choose_device(PlacementConfig(device='cpu', allocator='{kind}'))\n"
        "for _ in range(3): big = torch.ones(4 << 20); del big\n"  # 16 MiB: raises glibc's own threshold
        "kept = []\n"
        "for _ in range(16): x = torch.ones(1 << 20); kept.append(torch.ones(1 << 10)); del x\n"
        "tensors = [torch.ones(1 << 20) for _ in range(16)]; before = resident()\n"
        "kept += [torch.ones(1 << 10) for _ in range(16)]; del tensors; print(before - resident())"
    )
    gone = {}
    for kind in ("lean", "fast"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(kind=kind)], capture_output=True, text=True, timeout=60, check=True
        )
        gone[kind] = int(done.stdout)
    assert gone["lean"] >= 16 * (4 << 20) * 0.95
    assert gone["fast"] < gone["lean"]
