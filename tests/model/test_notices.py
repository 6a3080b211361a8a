"""bitsandbytes' notice about a kernel that nothing here uses is not shown; its other notices are."""

from __future__ import annotations

import logging
import subprocess
import sys

from accord.model.notices import IDLE, leave_out_idle_notices


def test_that_one_and_no_other(caplog) -> None:
    leave_out_idle_notices()
    leave_out_idle_notices()
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    assert len(logger.filters) == 1
    with caplog.at_level(logging.WARNING):
        logger.warning(f"{IDLE} from kernels-community: %s.", "no network")
        logger.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_nothing_is_said_where_peft_is_imported_first() -> None:
    """It brings bitsandbytes along, which says it at its own import."""
    words = [sys.executable, "-c", "import accord.model.adapter_files"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stderr == ""
