"""How many CPU threads, and processes beside it, this process should take: what is really its own."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

ROOT = Path("/sys")


def default_threads(root: Path = ROOT) -> int | None:
    """Physical cores of this process, shared among the ranks of this machine; `None` where OMP_NUM_THREADS says it already.

    torch itself counts processors: with two hardware threads a core it takes both, which matrix products do not gain from, and
    in a container it takes those of the whole machine, however few the container may use.

    Args:
        root: where Linux tells about processors and control groups; elsewhere processors are counted.
    """
    if "OMP_NUM_THREADS" in os.environ:  # torchrun sets it to 1 for several ranks
        return None
    return _share(physical_cores(_processors(), root), root)


def default_workers(root: Path = ROOT) -> int:
    """Processors (hardware threads) of this process, shared among the ranks of this machine: processes that may compute at once.

    Args:
        root: see `default_threads`.
    """
    return _share(len(_processors()), root)


def _processors() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _share(count: int, root: Path) -> int:
    """What of a number of processors the container's quota and the other ranks leave."""
    allowed = quota(root)
    left = count if allowed is None else min(count, allowed)
    return max(1, math.floor(left / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def physical_cores(processors: Iterable[int], root: Path = ROOT) -> int:
    """Cores that some processors belong to; each its own where the system does not tell."""
    cores = set()
    for processor in processors:
        file = root / f"devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
        cores.add(file.read_text().strip() if file.is_file() else str(processor))
    return len(cores)


def quota(root: Path = ROOT) -> float | None:
    """Processors' worth of time that the control group of this process may use; `None` without a limit."""
    new, old = root / "fs/cgroup/cpu.max", root / "fs/cgroup/cpu"
    try:
        if new.is_file():
            limit, period = new.read_text().split()
        else:
            limit, period = ((old / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        share = float(limit) / float(period)
    except (OSError, ValueError):  # no such file, or `max`
        return None
    return share if share > 0 else None
