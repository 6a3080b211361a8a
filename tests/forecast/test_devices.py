"""Names and sizes of devices."""

from __future__ import annotations

import os

import pytest

from accord.errors import ConfigError
from accord.forecast.devices import GIB, Device, parse_device
from accord.machine import machine_memory


@pytest.mark.parametrize(
    ("text", "size", "count", "cpu"),
    [
        ("24GiB", 24 * GIB, 1, False),
        ("24 GB", 24 * GIB, 1, False),
        ("0.5GiB", GIB // 2, 1, False),
        ("512MiB", 512 << 20, 1, False),
        ("A100-80GB", 80 * GIB, 1, False),
        ("8xA100-80GB", 80 * GIB, 8, False),
        ("8XA100-40gb", 40 * GIB, 8, False),
        ("2x24GiB", 24 * GIB, 2, False),
        ("rtx 4090", 24 * GIB, 1, False),
        ("cpu:16GiB", 16 * GIB, 1, True),
    ],
)
def test_sizes_names_and_counts(text, size, count, cpu):
    assert parse_device(text) == Device(text, size, count, cpu)


def test_cpu_is_this_machine():
    made = parse_device("cpu")
    assert made.cpu and made.bytes == machine_memory() > 0
    assert made.bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("text", ["8xA10O-80GB", "A100-80"])
def test_an_unknown_name_gets_the_nearest(text):
    with pytest.raises(ConfigError, match=r"unknown device .*did you mean (8x)?A100-80GB\?"):
        parse_device(text)


@pytest.mark.parametrize("text", ["", "24", "0xA100", "-1GiB", "0GiB", "24 parsecs", "cpu:much"])
def test_what_is_no_device_is_refused(text):
    with pytest.raises(ConfigError, match="give a size"):
        parse_device(text)
