from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from accord.config import PlacementConfig
from accord.model.device import choose_device
from accord.model.threads import default_threads, default_workers, physical_cores, quota


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four cores of two hardware threads each: 0 and 4, 1 and 5, ..."""
    for processor in range(8):
        folder = tmp_path / f"devices/system/cpu/cpu{processor}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{processor % 4},{processor % 4 + 4}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def limit(root: Path, text: str) -> None:
    (root / "fs/cgroup").mkdir(parents=True, exist_ok=True)
    (root / "fs/cgroup/cpu.max").write_text(text)


def test_two_hardware_threads_are_one_core(machine, monkeypatch):
    assert default_threads(machine) == physical_cores(range(8), machine) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 4, 1})
    assert default_threads(machine) == 2
    assert physical_cores(range(3), machine / "elsewhere") == 3, "where nothing is told, each is its own"


@pytest.mark.parametrize(
    ("text", "threads"),
    [
        ("max 100000", 4),
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 4),
        ("?", 4),
    ],
)
def test_a_container_takes_what_it_may(machine, text, threads):
    limit(machine, text)
    assert default_threads(machine) == threads


def test_the_older_control_groups(machine):
    folder = machine / "fs/cgroup/cpu"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert quota(machine) is None
    (folder / "cpu.cfs_quota_us").write_text("300000\n")
    assert quota(machine) == 3 and default_threads(machine) == 3


def test_ranks_share_the_cores(machine, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert default_threads(machine) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert default_threads(machine) == 1


def test_processes_beside_this_one_take_processors_and_not_cores(machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of threads, not of processes
    assert default_workers(machine) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 4, 1})
    assert default_workers(machine) == 3
    limit(machine, "250000 100000")
    assert default_workers(machine) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert default_workers(machine) == 1


def test_what_the_user_says_counts(machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads(machine) is None


def test_the_device_takes_them_and_no_more_than_were_chosen_before(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr("accord.model.device.default_threads", lambda: 2)
    try:
        for chosen, expected in ((4, 2), (1, 1)):
            torch.set_num_threads(chosen)
            choose_device(PlacementConfig(device="cpu"))
            assert torch.get_num_threads() == expected
        monkeypatch.setattr("accord.model.device.default_threads", lambda: None)
        torch.set_num_threads(3)
        choose_device(PlacementConfig(device="cpu"))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
