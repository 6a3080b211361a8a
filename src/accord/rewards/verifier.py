"""Answers that can be checked: mathematics, by the library math-verify in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import IO

from accord.config import VerifierConfig
from accord.errors import ConfigError, RewardError
from accord.rewards.protocol import Counts, checked_scores, describe
from accord.types import Rollout

START_SECONDS = 60.0
"""How long the process may take to import sympy."""
CLOCK, GRACE_SECONDS = 4.0, 5.0
"""On the clock the process may take this many times the CPU seconds of a response, and a few more, before it is killed: on a busy
machine CPU time is long in coming."""


class MathReward:
    """1 where the response's answer equals the known one, 0 where it does not or there is none; `None` without a known one.

    Raises:
        ConfigError: math-verify is not installed.
    """

    def __init__(self, config: VerifierConfig, label: str) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError("`verifier: math` needs the library math-verify: pip install 'accord[verify]'")
        self.config, self.label = config, label
        self._counts = Counts("timeout", "crashed")
        self._worker: Worker | None = None
        self._lock = Lock()  # one conversation with the process at a time

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One score for each rollout; see `RewardSource.score`."""
        with self._lock:
            scores = [self._one(index, rollout) for index, rollout in enumerate(rollouts)]
        return checked_scores(self.label, scores, rollouts)

    def take_counts(self) -> dict[str, int]:
        """See `CountingSource`."""
        return self._counts.take()

    def _one(self, index: int, rollout: Rollout) -> float | None:
        gold = rollout.columns.get(self.config.answer)
        if gold is None:
            return None
        verdict = self._ask(str(gold), rollout.response_text)
        if verdict in ("timeout", "crashed"):
            self._counts.add(verdict)
            return 0.0
        if verdict == "no_gold":
            raise RewardError(
                f"reward {self.label}: no answer can be read from column {self.config.answer!r} = {str(gold)[:200]!r} of "
                f"{describe(index, rollout)}; give a number, LaTeX, or a solution that marks its answer with \\boxed{{}} or ####"
            )
        return float(verdict == "equal")

    def _ask(self, gold: str, response: str) -> str:
        """The verdict. A response that ends the process twice, the second time a fresh one, is at fault itself."""
        for _ in range(2):
            if self._worker is None:
                self._worker = Worker(self.label)
            verdict = self._worker.ask(gold, response, self.config.timeout)
            if verdict not in ("killed", "ended"):
                return verdict
            self._worker = None
            if verdict == "killed":
                return "timeout"
        return "crashed"


class Worker:
    """One process of `math_worker.py`.

    Raises:
        RewardError: it does not start.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  kept open as long as the process
        # -P: the folder of this file must not come first, or its `code.py` and `http.py` would hide the library's.
        command = [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py"))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True
        )
        self._end = weakref.finalize(self, _kill, self._process, self._errors)
        self._pending = b""
        answer = self._read(START_SECONDS)
        if answer != "ready":
            self._process.kill()
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read()[-2000:].decode(errors="replace").strip() or "it said nothing"
            self._end()
            late = f" within {START_SECONDS:g} s" if answer == "killed" else ""
            raise RewardError(f"reward {label}: the process of math-verify did not start{late}: {said}")

    def ask(self, gold: str, response: str, timeout: float) -> str:
        """The verdict; `killed` if it took too long and had to be, `ended` if the process ended by itself."""
        assert self._process.stdin is not None
        request = {"gold": gold, "response": response, "timeout": timeout}
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._end()
            return "ended"
        verdict = self._read(CLOCK * timeout + GRACE_SECONDS)
        if verdict in ("killed", "ended"):
            self._end()
            if self._process.returncode == -signal.SIGXCPU:  # its CPU seconds were used up where no signal reached it
                return "killed"
        return verdict

    def _read(self, seconds: float) -> str:
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return "killed"
                part = os.read(self._process.stdout.fileno(), 65536)
                if not part:
                    return "ended"
                self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        return str(json.loads(line))


def _kill(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, errors):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):  # what was left to write has no reader
                stream.close()
