"""What a recipe is to fit on: `24GiB`, `8xA100-80GB`, `cpu`."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from accord.errors import ConfigError
from accord.machine import machine_memory

GIB = 2**30
NAMED = {
    "T4": 16,
    "P100": 16,
    "V100-16GB": 16,
    "V100": 32,
    "RTX3060": 12,
    "RTX3090": 24,
    "RTX4080": 16,
    "RTX4090": 24,
    "RTX5090": 32,
    "A10": 24,
    "A10G": 24,
    "A30": 24,
    "A40": 48,
    "A6000": 48,
    "L4": 24,
    "L40S": 48,
    "A100": 40,
    "A100-40GB": 40,
    "A100-80GB": 80,
    "H100": 80,
    "H100-80GB": 80,
    "H200": 141,
    "B200": 180,
    "MI250X": 128,
    "MI300X": 192,
}
"""Accelerators and the memory that their makers print on them, which is taken for GiB."""
UNITS = {"gib": GIB, "gb": GIB, "g": GIB, "mib": 2**20, "mb": 2**20, "tib": 2**40, "tb": 2**40}


@dataclass(frozen=True)
class Device:
    """One kind of device, and how many there are."""

    name: str
    bytes: int
    """Of each."""
    count: int = 1
    cpu: bool = False
    """Whether it is this machine's own memory, which the process itself lives in, too."""

    def __str__(self) -> str:
        return self.name


def parse_device(text: str) -> Device:
    """Read `24GiB`, `A100-80GB`, `8xA100-80GB`, `2x24GiB`, `cpu`, or `cpu:16GiB`.

    Raises:
        ConfigError: it is none of them; names the nearest.
    """
    words = text.strip()
    if words.lower() == "cpu":
        return Device("cpu", machine_memory(), cpu=True)
    if words.lower().startswith("cpu:"):
        size = _size(words[4:])
        if size is not None:
            return Device(words, size, cpu=True)
    many = re.fullmatch(r"(\d+)\s*[xX*]\s*(.+)", words)
    count, kind = (int(many[1]), many[2]) if many else (1, words)
    found = _size(kind)
    plain = {name.lower().replace("-", ""): name for name in NAMED}
    key = kind.lower().replace(" ", "").replace("-", "").replace("_", "")
    if found is None and key in plain:
        found = NAMED[plain[key]] * GIB
    if found is None or count < 1 or found <= 0:
        near = difflib.get_close_matches(key, plain, n=1)
        hint = f"did you mean {f'{count}x' if many else ''}{plain[near[0]]}?" if near else f"names: {', '.join(NAMED)}"
        raise ConfigError(
            f"unknown device {text!r}: give a size (24GiB), a name, several (8xA100-80GB), or cpu; {hint}"
        )
    return Device(words, found, count)


def _size(text: str) -> int | None:
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]+)", text.strip())
    unit = UNITS.get(matched[2].lower()) if matched else None
    return int(float(matched[1]) * unit) if matched and unit else None
