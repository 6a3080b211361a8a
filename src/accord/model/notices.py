"""Messages of libraries that tell a person nothing they could act on, left out by the standard library's own means."""

from __future__ import annotations

import logging

IDLE = "Failed to load CPU gemm_4bit_forward"
"""bitsandbytes, when it is imported on a CPU with avx512_bf16: a kernel is not there that only layers repacked for inference
would use, and none of Accord's are (see `accord.model.quantized.NF4Linear`)."""


def leave_out_idle_notices() -> None:
    """Drop them from now on. bitsandbytes is imported by peft, whenever it is installed, at the first adapter."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    if _is_worth_it not in logger.filters:
        logger.addFilter(_is_worth_it)


def _is_worth_it(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(IDLE)
