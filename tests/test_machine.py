"""What is read from the system about this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from accord.machine import fast_types

ZEN_3 = "fpu sse4_2 fma f16c avx avx2 vaes"
CASCADE_LAKE = "avx2 avx512f avx512dq avx512bw avx512vl avx512_vnni"
SAPPHIRE_RAPIDS = CASCADE_LAKE + " avx512_bf16 avx512_fp16 amx_bf16 amx_tile"
ARROW_LAKE = "avx2 avx_vnni avx_ne_convert"


@pytest.mark.parametrize(
    ("line", "halves"),
    [
        (f"flags\t\t: {ZEN_3}", set()),
        (f"flags\t\t: {CASCADE_LAKE}", {"bfloat16"}),
        (f"flags\t\t: {SAPPHIRE_RAPIDS}", {"bfloat16", "float16"}),
        (f"flags\t\t: {ARROW_LAKE}", {"bfloat16", "float16"}),
        ("Features\t: fp asimd asimdhp fphp", {"float16"}),
        ("Features\t: fp asimd asimdhp fphp bf16", {"bfloat16", "float16"}),
        ("model name\t: one that does not tell", {"bfloat16", "float16"}),
    ],
)
def test_types_by_what_linux_says_of_the_processor(tmp_path: Path, line: str, halves: set[str]) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\n{line}\nbugs\t\t: none\n")
    assert fast_types(info) == {"float32"} | halves


def test_elsewhere_every_type_counts_as_fast(tmp_path: Path) -> None:
    assert fast_types(tmp_path / "nothing") == {"float32", "bfloat16", "float16"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system is not asked")
def test_this_machine_s_are_those_that_torch_has_kernels_for() -> None:
    """torch's own checks; a processor that it counts in must not be taken for a slow one, and the other way round."""
    assert ("bfloat16" in fast_types()) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert ("float16" in fast_types()) == torch.ops.mkldnn._is_mkldnn_fp16_supported()
