"""What each algorithm learns, side by side with trl on the same tasks, and the algorithms with each other.

    python benchmarks/learning.py MODEL DATA OUTPUT --trl-ppo FOLDER --trl FOLDER [--part contest|guide|all] [--workers 2]
    python benchmarks/learning.py MODEL DATA OUTPUT --tables

MODEL: folder of SmolLM2-135M-Instruct. DATA: folder with `movie_reviews/`. OUTPUT: folder of the runs; what is there is not run
again, so the benchmark can be stopped and gone on with. FOLDERs hold trl 1.12.0 (the last with PPO) and 1.16.0, each made by
`pip install --no-deps --target FOLDER trl==VERSION`. Needs `pip install vaderSentiment==3.3.2 matplotlib`.

Contest: PPO, GRPO, RLOO, DPO and KTO, each with both libraries: same base, LoRA on all linear layers, prompts, number of
responses, batch, KL coefficient, constant learning rate; the rate is searched over the same values and chosen by the score on
training prompts (the column `search` says with how many seeds each); 3 seeds at the best one. Guide: Accord's methods on one
task, searched with seed 0, with best-of-n of the base as the yardstick. Everything is judged on held-out prompts by
`contest/judge.py`, which is plain transformers and peft; a mean over 320 of its responses to additions has a standard error of
0.02, one over 200 continued reviews of 0.03.

Writes results/learning.json, results/learning.md and a picture of each task, results/learning_TASK.svg, beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from base_type import NAME
from contest import settings
from contest.plan import BEST_OF, CONTEST, GUIDE, GUIDE_TASK, OFFLINE, TASKS
from contest.series import chosen
from contest.tables import write_results

HERE = Path(__file__).parent


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="what each algorithm learns, beside trl")
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--trl-ppo", type=Path, help="folder with trl 1.12.0")
    parser.add_argument("--trl", type=Path, help="folder with trl 1.16.0")
    parser.add_argument("--part", choices=("contest", "guide", "all"), default="all")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--libraries", nargs="+", choices=("trl", "accord"), default=("trl", "accord"))
    parser.add_argument("--workers", type=int, default=2, help="runs at once, of one thread each")
    parser.add_argument("--tables", action="store_true", help="only write the results of what has run")
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    if not asked.tables:
        bench = Bench(asked)
        if asked.part in ("contest", "all"):
            bench.contest()
        if asked.part in ("guide", "all"):
            bench.guide()
    write_results(asked.output, HERE / "results", __doc__ or "")


class Bench:
    """Runs jobs, each in a process of its own, and remembers what has run by the files that are there."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked

    def contest(self) -> None:
        """Each method with each library: search, then seeds."""
        series = [
            (task, method, library)
            for task in self.asked.tasks
            for method in CONTEST
            if self.asked.methods is None or method in self.asked.methods
            for library in self.asked.libraries
        ]
        for task in self.asked.tasks:
            of_task = [one for one in series if one[0] == task]
            self._search_then_seeds("contest", of_task, settings.SEARCH_SEEDS[task])

    def guide(self) -> None:
        """Accord's methods on one task, and best-of-n of the base."""
        for n in (1, *BEST_OF):
            self._judge_base(n)
        names = [name for name in GUIDE if self.asked.methods is None or name in self.asked.methods]
        names = [name for name in names if name not in CONTEST]  # those are the contest's own runs
        self._search_then_seeds("guide", [(GUIDE_TASK, name, "accord") for name in names], settings.SEEDS[:1])

    def _search_then_seeds(self, part: str, series: list[tuple[str, str, str]], search: tuple[int, ...]) -> None:
        self._all(
            self._job(part, *one, rate, seed) for seed in search for one in series for rate in settings.RATES[one[0]]
        )
        jobs = []
        for one in series:
            done = [
                self._result(self._job(part, *one, rate, seed)) for rate in settings.RATES[one[0]] for seed in search
            ]
            finished = [result for result in done if result is not None]
            if finished:
                best = chosen(finished)[0]["rate"]
                jobs += [self._job(part, *one, best, seed) for seed in settings.SEEDS]
        self._all(jobs)

    def _job(self, part: str, task: str, method: str, library: str, rate: float, seed: int) -> dict[str, Any]:
        name = f"{part}-{task}-{method}-{library}-{rate:g}-{seed}"
        job: dict[str, Any] = {
            "name": name,
            "part": part,
            "task": task,
            "label": method,
            "method": method,
            "library": library,
            "rate": rate,
            "seed": seed,
            "iterations": settings.ITERATIONS[task],
            "batch": settings.BATCH[task],
            "dtype": NAME,
            "model": str(self.asked.model),
            "data": str(self.asked.data),
            "folder": str(self.asked.output / name),
        }
        if part == "guide":
            job |= GUIDE[method]
        if job["method"] in OFFLINE:
            rows = self._rows(task, OFFLINE[job["method"]])
            job |= {"rows": str(rows), "iterations": settings.EXAMPLE_EPOCHS * _lines(rows) // job["batch"]}
        return job

    def _rows(self, task: str, kind: str) -> Path:
        """Pairs or labelled rows from the base's own responses, drawn once."""
        path = self.asked.output / f"{task}-{kind}.jsonl"
        if not path.is_file():
            words = ["rows", str(self.asked.model), str(self.asked.data), task, str(self.asked.output)]
            subprocess.run([sys.executable, "-m", "contest.rows", *words[1:]], env=_environment(None), check=True)
        return path

    def _judge_base(self, best_of: int) -> None:
        path = self.asked.output / f"base-{GUIDE_TASK}-{best_of}.json"
        if not path.is_file():
            judged = self._judged(GUIDE_TASK, "-", str(best_of), f"held_out={path}")
            subprocess.run(judged, env=_environment(None), check=True)

    def _judged(self, task: str, *words: str) -> list[str]:
        """The command that judges."""
        return [sys.executable, "-m", "contest.judge", str(self.asked.model), str(self.asked.data), task, *words]

    def _result(self, job: dict[str, Any]) -> dict[str, Any] | None:
        path = Path(job["folder"]) / "result.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def _all(self, jobs: Iterable[dict[str, Any]]) -> None:
        waiting = [job for job in jobs if self._result(job) is None]
        with ThreadPoolExecutor(self.asked.workers) as pool:
            list(pool.map(self._run, waiting))

    def _run(self, job: dict[str, Any]) -> None:
        folder = Path(job["folder"])
        shutil.rmtree(folder, ignore_errors=True)  # what a run that was stopped has left
        folder.mkdir(parents=True)
        trl = self.asked.trl_ppo if job["method"] == "ppo" else self.asked.trl
        if job["library"] == "trl" and trl is None:
            raise SystemExit("runs with trl need --trl-ppo and --trl; --libraries accord leaves them out")
        (folder / "job.json").write_text(json.dumps(job))
        module = "contest.with_trl" if job["library"] == "trl" else "contest.with_accord"
        environment = _environment(trl if job["library"] == "trl" else None)
        with (folder / "log.txt").open("w") as log:
            done = subprocess.run(
                [sys.executable, "-m", module, str(folder / "job.json")], env=environment, stdout=log, stderr=log
            )
            if done.returncode == 0:
                files = [f"{prompts}={folder / prompts}.json" for prompts in ("train", "held_out")]
                judged = self._judged(job["task"], str(folder / "model"), "1", *files)
                subprocess.run(judged, env=_environment(None), stdout=log, stderr=log, check=True)
        if done.returncode:
            print(f"FAILED {job['name']}: see {folder / 'log.txt'}", flush=True)
            return
        parts = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("run", "train", "held_out")}
        kept = {
            key: job.get(key)
            for key in ("part", "task", "label", "method", "library", "rate", "seed", "iterations", "batch", "dtype")
        }
        result = kept | {"train": parts["train"], "held_out": parts["held_out"]} | parts["run"]
        (folder / "result.json").write_text(json.dumps(result))
        held_out = parts["held_out"]
        print(f"{job['name']}: {held_out['score']:.3f} at {held_out['kl']:.2f} nats", flush=True)


def _environment(trl: Path | None) -> dict[str, str]:
    """Of a process: one thread, offline, `contest` importable, and one version of trl or none."""
    folders = [str(HERE), *([str(trl)] if trl else []), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(folder for folder in folders if folder),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    main()
