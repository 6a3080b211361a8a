"""The one place that chooses a device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from accord.config import PlacementConfig
from accord.errors import ConfigError
from accord.model.device import PeakMemory, choose_device, return_freed_memory, visiting


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


def test_each_phase_has_its_own_peak() -> None:
    """200 MiB taken and given back in one phase are seen in it, and not in the next."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process is set back as Linux does it")
    memory = PeakMemory(torch.device("cpu"))
    memory.lap("start")
    quiet = memory.lap("quiet")
    torch.ones(50 * 2**20)
    taken = memory.lap("taken")
    return_freed_memory()
    memory.lap("between")
    after = memory.lap("after")
    assert 0.19 < taken - quiet < 0.25
    assert after < quiet + 0.05
    assert memory.highest == max(memory.phases.values()) >= taken
    torch.ones(10 * 2**20)
    memory.lap("taken")
    assert memory.phases["taken"] == taken, "the highest of a phase that comes again"


def test_the_peak_is_the_kernel_s_own() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc")
    memory = PeakMemory(torch.device("cpu"))
    status = Path("/proc/self/status").read_text()
    told = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert memory.lap("x") * 2**20 == pytest.approx(told, rel=0.01)


class Traveller(nn.Linear):
    """Notes where it is sent."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.sent: list[str] = []

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        self.sent.append(fn(torch.empty(1)).device.type)
        return self


def test_what_waits_is_there_while_it_is_used_and_goes_back() -> None:
    one, two = Traveller(), Traveller()
    with visiting([one, two], torch.device("meta")):
        assert one.sent == two.sent == ["meta"]
    assert one.sent == two.sent == ["meta", "cpu"]
    with pytest.raises(RuntimeError, match="stop"), visiting([one], torch.device("meta")):
        raise RuntimeError("stop")
    assert one.sent[-1] == "cpu", "also after a failure"


def test_in_main_memory_nothing_moves() -> None:
    layer = nn.Linear(3, 3)
    before = layer.weight.data_ptr()
    with visiting([layer], torch.device("cpu")):
        assert layer.weight.data_ptr() == before
    assert layer.weight.data_ptr() == before
