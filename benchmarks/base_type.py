"""The type that all sides of a benchmark hold the base in: the checkpoint's bfloat16 where the processor multiplies it fast."""

from __future__ import annotations

import torch

from accord.machine import fast_types

NAME = "bfloat16" if "bfloat16" in fast_types() else "float32"
"""Elsewhere PyTorch multiplies 16-bit numbers in plain loops, forty times slower than float32 in a backward pass."""
DTYPE: torch.dtype = getattr(torch, NAME)
