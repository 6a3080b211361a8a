"""The machine that this process runs on, without torch."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


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


@cache
def fast_types(info: Path = CPU_INFO) -> frozenset[str]:
    """Float types in which this machine's processor multiplies matrices about as fast as in float32, or faster.

    Without such instructions PyTorch multiplies 16-bit numbers in plain loops: on an EPYC of the third generation (AVX2), 2,000
    rows by 576 by 1,536 on one thread, float32 85 thousand million operations a second, bfloat16 10, and its product with
    the weight as it lies, as in a backward pass, 2. The conditions are those of PyTorch's `mkldnn_bf16_device_check` and
    `mkldnn_fp16_device_check`. Where Linux does not tell, every type counts as fast.

    Args:
        info: what Linux says of the processor.
    """
    every = frozenset({"float32", "bfloat16", "float16"})
    found = (
        re.search(r"^(?:flags|Features)\s*:(.*)$", info.read_text(encoding="utf-8"), re.MULTILINE)
        if info.is_file()
        else None
    )
    if found is None:
        return every
    flags = set(found[1].split())
    fast = {"float32"}
    if {"avx512bw", "avx512vl", "avx512dq"} <= flags or "avx_ne_convert" in flags or "bf16" in flags:
        fast.add("bfloat16")
    if "avx512_fp16" in flags or "avx_ne_convert" in flags or "fphp" in flags:
        fast.add("float16")
    return frozenset(fast)
