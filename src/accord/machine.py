"""The machine that this process runs on, without torch."""

from __future__ import annotations

import os
import re
from pathlib import Path


def machine_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's if that is less."""
    sizes = []
    info = Path("/proc/meminfo")
    if info.is_file():
        found = re.search(r"^MemTotal:\s+(\d+) kB", info.read_text(encoding="utf-8"), re.MULTILINE)
        sizes += [int(found[1]) * 1024] if found else []
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        text = limit.read_text(encoding="utf-8").strip() if limit.is_file() else ""
        sizes += [int(text)] if text.isdigit() else []
    if not sizes:
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(sizes)
