"""Runs the sides of a row in turns: each is a warm process, and all but one are stopped at any moment."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from contest_speed.rows import Row, Side

HERE = Path(__file__).parent.parent
Answer = dict[str, Any]


class SideFailedError(Exception):
    """A side ended, or said nothing for too long."""


class Process:
    """One side."""

    def __init__(
        self, side: Side, job: dict[str, Any], folder: Path, peers: dict[str, Path | None], threads: int
    ) -> None:
        self.side, self.log = side, folder / f"{re.sub(r'[^a-z]+', '-', side.label)}.log"
        path = self.log.with_suffix(".job.json")
        path.write_text(json.dumps(job))
        python = str(peers["vllm"]) if side.peer == "vllm" else sys.executable
        extra = peers[side.peer] if side.peer in ("trl", "trl-ppo") else None
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-m", f"contest_speed.{side.module}", str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(extra, threads),
                text=True,
                start_new_session=True,  # a side may have processes of its own, and all of them are stopped
            )

    def turn(self, deadline: float, first: bool = False) -> Answer:
        """One unit of work; the process is stopped before and after.

        Raises:
            SideFailedError: it ended, or the deadline (seconds) passed.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        if not first:
            self._signal(signal.SIGCONT)
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], deadline)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            tail = " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-2:])
            raise SideFailedError(f"{self.side.label}: {'ended' if ready else f'silent for {deadline:.0f} s'}: {tail}")
        self._signal(signal.SIGSTOP)
        answer: Answer = json.loads(line)
        return answer

    def end(self) -> None:
        """Kill it: it has nothing to save."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def environment(extra: Path | None, threads: int) -> dict[str, str]:
    """Of a side: so many threads that do not spin for long, no network, this package and one version of trl."""
    folders = [str(HERE), *([str(extra)] if extra else []), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(folder for folder in folders if folder),
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "10000",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run_row(
    row: Row,
    base: dict[str, Any],
    peers: dict[str, Path | None],
    *,
    turns: int,
    threads: int,
    deadline: float,
    label: str,
) -> dict[str, Any]:
    """Turns A B A B ... of a row's sides, or why it could not be.

    Args:
        row: what to run; sides whose peer is not there are left out.
        base: what all jobs share.
        peers: folder of each version of trl, interpreter of vllm.
        turns: units of each side.
        threads: of each side.
        deadline: seconds for a unit.
        label: for the progress lines.
    """
    sides = [side for side in row.sides if side.peer is None or peers.get(side.peer) is not None]
    folder = Path(base["work"]) / "logs" / row.name
    folder.mkdir(parents=True, exist_ok=True)
    processes: list[Process] = []
    answers: dict[str, list[Answer]] = {side.label: [] for side in sides}
    ready: dict[str, Answer] = {}
    try:
        for side in sides:
            job = base | side.job
            if job.get("wide"):
                job["model"] = str(Path(base["work"]) / "wide")
            started = time.perf_counter()
            processes.append(Process(side, job, folder, peers, threads))
            ready[side.label] = processes[-1].turn(deadline, first=True) | {"seconds": time.perf_counter() - started}
            print(f"{label} {row.name}: {side.label} ready after {ready[side.label]['seconds']:.0f} s", flush=True)
        for turn in range(turns):
            started = time.perf_counter()
            for process in processes:
                answers[process.side.label].append(process.turn(deadline))
            spent = ", ".join(f"{name} {found[-1]['seconds']:.1f} s" for name, found in answers.items())
            left = (turns - turn - 1) * (time.perf_counter() - started)
            print(f"{label} {row.name}: turn {turn + 1} of {turns}: {spent}; {left / 60:.1f} min left", flush=True)
    except SideFailedError as error:
        print(f"{label} {row.name}: FAILED: {error}", flush=True)
        return {"row": row.name, "failed": str(error), "threads": threads}
    finally:
        for process in processes:
            process.end()
    return {"row": row.name, "turns": answers, "ready": ready, "threads": threads}
