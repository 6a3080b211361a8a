"""Code of responses, run against tests in a process of its own. What this protects from and what not: docs/rewards.md."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from accord.config import CodeConfig
from accord.errors import RewardError
from accord.model.threads import default_workers
from accord.rewards.protocol import Counts, checked_scores, describe
from accord.types import Rollout

START_SECONDS = 60.0
"""How long the process may take to start, on a busy machine, before the fault is ours."""
CLOCK, CLOCK_MORE = 4.0, 2.0
"""On the clock the code may take this many times its CPU seconds, and a few more: it may sleep, and the machine may be busy."""
NEARLY = 0.8
"""The share of its CPU seconds after which a process that was killed has used them up: the kernel's two counts differ."""
REPORT_BYTES = 2**16
"""More is not the sandbox's."""
FENCE = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
"""A block of code in a response; the last may lack its end."""
PYTHON = ("python", "py", "python3")
ISOLATION = (
    ("--net", "--pid", "--fork", "--kill-child"),
    ("--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"),
    ("--net",),
    ("--user", "--map-root-user", "--net"),
)
"""Options of `unshare`, the best first: no network; and, with a process table of its own, nothing outlives the test."""


@dataclass(frozen=True)
class Outcome:
    """What came of the code of one response."""

    kind: Literal["passed", "failed", "crashed", "timeout"]
    """All tests passed; some failed; the process ended before its report; it took too long."""
    passed: int
    tests: int
    error: str = ""
    """Of the first test that failed."""


class CodeReward:
    """The share of its tests that a response's code passes; `None` for rows without tests.

    Raises:
        RewardError: the sandbox does not run on this machine.
    """

    def __init__(self, config: CodeConfig, label: str) -> None:
        self.config, self.label = config, label
        self._counts = Counts("failed", "crashed", "timeout")
        proof = self._run({"before": "", "code": "x = 1", "joined": False, "tests": ["assert x == 1", "assert x == 2"]})
        if (proof.kind, proof.passed) != ("failed", 1):
            raise RewardError(f"reward {label}: the sandbox does not work here; of x = 1 it said {proof}")

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One score for each rollout; see `RewardSource.score`."""
        jobs = [self._job(index, rollout) for index, rollout in enumerate(rollouts)]
        with ThreadPoolExecutor(self.config.workers or default_workers()) as pool:
            outcomes = list(pool.map(lambda job: None if job is None else self._run(job), jobs))
        return checked_scores(self.label, [self._value(outcome) for outcome in outcomes], rollouts)

    def take_counts(self) -> dict[str, int]:
        """See `CountingSource`."""
        return self._counts.take()

    def _value(self, outcome: Outcome | None) -> float | None:
        if outcome is None:
            return None
        if outcome.kind != "passed":
            self._counts.add(outcome.kind)
        if self.config.all_or_nothing:
            return float(outcome.kind == "passed")
        return outcome.passed / outcome.tests

    def _job(self, index: int, rollout: Rollout) -> dict[str, Any] | None:
        config, columns = self.config, rollout.columns
        tests = columns.get(config.tests)
        if tests is None:
            return None
        given, tests = tests, _texts(tests)
        if not tests:
            raise RewardError(
                f"reward {self.label}: column {config.tests!r} of {describe(index, rollout)} holds {str(given)[:80]}; tests are "
                "a text or a list of texts"
            )
        missing = [name for name in config.columns if columns.get(name) is None]
        if missing:
            raise RewardError(f"reward {self.label}: {describe(index, rollout)} has tests and no column {missing[0]!r}")
        after = "" if config.after is None else "\n" + config.after.format_map(columns)
        completes = config.before == "prompt"
        code = extract(rollout.response_text)
        before = (
            rollout.prompt_text if completes else "" if config.before is None else str(columns[config.before]) + "\n"
        )
        # A block of code in an answer is a whole function, and not the rest of the prompt's last line.
        joined = completes and code == rollout.response_text
        return {"before": before, "code": code, "joined": joined, "tests": [test + after for test in tests]}

    def _run(self, job: dict[str, Any]) -> Outcome:
        limits = {"timeout": self.config.timeout, "memory_mb": self.config.memory_mb, "file_mb": self.config.file_mb}
        try:
            return run(job | limits, clock_seconds(self.config.timeout))
        except OSError as error:
            raise RewardError(
                f"reward {self.label}: no process could be started for a response's code: {error}"
            ) from error
        except RewardError as error:
            raise RewardError(f"reward {self.label}: {error}") from error


def _texts(tests: Any) -> list[str]:
    """The tests of a row; none if the column holds something else."""
    if isinstance(tests, str):
        return [tests]
    listed = list(tests) if isinstance(tests, Iterable) and not isinstance(tests, Mapping) else []
    return listed if all(isinstance(test, str) for test in listed) else []


def extract(response: str) -> str:
    """The code of a response: its last block between fences that says it is Python, else the last that does not say what it is,
    else all of it. Without a word may be what a program prints."""
    blocks = [(language.lower(), text) for language, text in FENCE.findall(response)]
    said = [text for language, text in blocks if language in PYTHON]
    unsaid = [text for language, text in blocks if not language]
    return (said or unsaid or [response])[-1]


def clock_seconds(timeout: float) -> float:
    """How long code may take on the clock that may take some CPU seconds."""
    return CLOCK * timeout + CLOCK_MORE


def run(job: dict[str, Any], seconds: float) -> Outcome:
    """Run a job of `sandbox.py` in a process of its own, and kill whatever is left of it.

    Args:
        job: `before`, `code`, `tests`, and whether the first two are `joined` to one text; `memory_mb`, `file_mb`, `timeout`,
            which are CPU seconds.
        seconds: on the clock, from the moment at which the process is ready.

    Raises:
        RewardError: the process did not get so far as to run the code.
        OSError: it could not be started.
    """
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="accord-code-") as folder, tempfile.TemporaryFile() as given, \
            tempfile.TemporaryFile() as errors:  # fmt: skip
        Path(folder).chmod(0o777)  # whoever the process becomes writes here
        given.write(json.dumps({**job, "secret": secret}).encode())
        given.seek(0)
        with _process(folder, given, errors) as (process, report):
            started = report.line(START_SECONDS)
            if started != secret:
                process.kill()
                process.wait()
                errors.seek(0)
                said = errors.read()[-2000:].decode(errors="replace").strip()
                raise RewardError(f"the sandbox did not start (code {process.returncode}): {said or 'it said nothing'}")
            text = report.line(seconds)
            late = text is not None and not text.startswith(secret) and _out_of_time(process, job["timeout"])
    tests = len(job["tests"])
    if text is None:
        return Outcome("timeout", 0, tests, f"took longer than {seconds:g} s on the clock")
    if late:
        return Outcome("timeout", 0, tests, f"took more than {job['timeout']:g} s of CPU time")
    if not text.startswith(secret):
        return Outcome("crashed", 0, tests, "the process ended before its tests did")
    try:
        said = json.loads(text.removeprefix(secret))
        passed, error = int(said["passed"]), str(said["error"])
    except (ValueError, KeyError, TypeError):
        passed, error = -1, ""
    if not 0 <= passed <= tests:
        return Outcome("crashed", 0, tests, "the report was tampered with")
    return Outcome("passed" if passed == tests else "failed", passed, tests, error)


def _out_of_time(process: subprocess.Popen[bytes], timeout: float) -> bool:
    """Whether a process that has closed its report was killed for its CPU seconds.

    What it used tells, and no status does: some versions of `unshare` end with 1 after a child that was killed.
    """
    deadline = time.monotonic() + 1.0  # it may have closed the pipe and go on
    with contextlib.suppress(ChildProcessError):  # where ended processes are not kept for whoever started them
        while time.monotonic() < deadline:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                return process.returncode != 0 and used.ru_utime + used.ru_stime >= NEARLY * math.ceil(timeout)
            time.sleep(0.005)
    return False


@contextlib.contextmanager
def _process(folder: str, given: IO[bytes], errors: IO[bytes]) -> Iterator[tuple[subprocess.Popen[bytes], _Report]]:
    report, write = os.pipe()
    try:
        try:
            # Nothing of the environment, no packages beside the standard library, no standard output.
            python = [sys.executable, "-I", "-S", "-B", str(Path(__file__).with_name("sandbox.py")), str(write)]
            process = subprocess.Popen(
                [*isolation(), *python],
                stdin=given,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=folder,
                env={},
                pass_fds=(write,),
                start_new_session=True,
            )
        finally:
            os.close(write)
        try:
            yield process, _Report(report)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    finally:
        os.close(report)


class _Report:
    """Lines of a pipe, with deadlines."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self._pending = descriptor, b""

    def line(self, seconds: float) -> str | None:
        """The next line, without its end; what there is of it if the pipe ended or says too much; `None` if it took too long."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.descriptor, selectors.EVENT_READ)
            while b"\n" not in self._pending and len(self._pending) < REPORT_BYTES:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return None
                part = os.read(self.descriptor, 65536)
                if not part:
                    break
                self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace")


@functools.cache
def isolation() -> tuple[str, ...]:
    """The command that takes the network away, if this machine has one that works; else nothing."""
    program = shutil.which("unshare")
    for options in ISOLATION if program else ():
        command = (str(program), *options, "--")
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if (
                subprocess.run(
                    [*command, sys.executable, "-I", "-S", "-c", ""], capture_output=True, timeout=20
                ).returncode
                == 0
            ):
                return command
    return ()
