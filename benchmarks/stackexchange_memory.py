"""Memory and time of `accord data stackexchange` on made-up dumps of several sizes.

    python benchmarks/stackexchange_memory.py FOLDER [--megabytes 64 256 1024] [--processes 2] [--output JSON]

FOLDER holds the dumps and the results on the way, about three times the largest size. The command runs as a process of its
own; its resident memory, and that of the processes it starts, is read from /proc ten times a second.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident(pid: int) -> int:
    """Bytes in memory of a process, 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid] + [below for child in children for below in family(int(child))]


def write_dump(path: Path, megabytes: int) -> None:
    """A dump with posts as long as real ones (1.3 kB)."""
    spec = importlib.util.spec_from_file_location("dump", ROOT / "examples" / "stackexchange_dump.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_dump(path, size=megabytes * 10**6, paragraphs=8)


def measure(dump: Path, output: Path, words: list[str], temporary: Path) -> dict[str, float | str]:
    """Run the command; peak memory of the reading process and of all together, in MB, and seconds."""
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "accord", "data", "stackexchange", str(dump), "--output", str(output), *words]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    peak = together = 0
    while process.poll() is None:
        sizes = [resident(pid) for pid in family(process.pid)]
        peak, together = max(peak, sizes[0]), max(together, sum(sizes))
        time.sleep(0.1)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"the command failed with code {process.returncode}: {' '.join(command)}")
    return {
        "dump_mb": round(dump.stat().st_size / 1e6, 1),
        "options": " ".join(words),
        "seconds": round(seconds, 1),
        "mb_per_second": round(dump.stat().st_size / 1e6 / seconds, 2),
        "peak_mb": round(peak / 1e6, 1),
        "peak_mb_all_processes": round(together / 1e6, 1),
        "output_mb": round(output.stat().st_size / 1e6, 1),
    }


def main() -> None:
    """Measure each size, with each kind of output given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--processes", default="2")
    parser.add_argument("--format", default="pairs")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "stackexchange_memory.json")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results = []
    for megabytes in options.megabytes:
        dump = options.folder / f"Posts-{megabytes}.xml"
        if not dump.exists():
            write_dump(dump, megabytes)
        words = ["--format", options.format, "--processes", options.processes]
        results.append(measure(dump, options.folder / "out.jsonl", words, options.folder))
        print(results[-1], flush=True)
        text = json.dumps({"command": " ".join(["python", *sys.argv]), "results": results}, indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
