"""How a side talks with `speed.py`: it says when it is ready, then does one unit of work for each line that it reads."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Facts = dict[str, Any]


class Turns:
    """One side's end of the conversation. Whatever libraries print goes to the log, not into it."""

    def __init__(self) -> None:
        _die_with_parent()
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._born = time.perf_counter()
        self._started: float | None = None
        self._worked = 0.0

    def wait(self) -> None:
        """Until the next unit is asked for; ends the process when none is."""
        if sys.stdin.readline().strip() != "go":
            os._exit(0)
        self._started, self._worked = time.perf_counter(), time.process_time()

    def answer(self, **facts: Any) -> None:
        """The unit is done; the first answer, before any was asked for, says that the side is ready."""
        now = time.perf_counter()
        seconds = now - (self._born if self._started is None else self._started)
        worked = time.process_time() - self._worked  # of all threads; hardly depends on what else runs
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self._answers.write(json.dumps({"seconds": seconds, "cpu_seconds": worked, "peak_gib": peak, **facts}) + "\n")
        self._answers.flush()


def _die_with_parent() -> None:
    """A side may be stopped when `speed.py` is killed, and would otherwise stay so, with all its memory. Only on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def serve(prepare: Callable[[Facts], Callable[[], Facts]]) -> None:
    """Run a side: load, one unit untimed, then one for each line. The job is the file that the command line names."""
    turns = Turns()
    unit = prepare(json.loads(Path(sys.argv[1]).read_text()))
    unit()
    turns.answer()
    while True:
        turns.wait()
        turns.answer(**unit())
