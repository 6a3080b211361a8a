"""One run of `learning.py` with Accord. Run as a process of its own: python -m contest.with_accord JOB.json"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from base_type import NAME
from contest import settings
from contest.tasks import load_task
from transformers import AutoTokenizer

import accord


def recipe(job: dict[str, Any]) -> dict[str, Any]:
    """The job as a recipe of Accord."""
    method, folder = job["method"], Path(job["folder"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    task = load_task(job["task"], tokenizer, Path(job["data"]))
    shared: dict[str, Any] = {
        "model": {"path": job["model"], "dtype": NAME},
        "adapter": {"r": settings.LORA["r"], "alpha": settings.LORA["alpha"]},
        "train": {
            "batch_size": job["batch"],
            "learning_rate": job["rate"],
            "schedule": "constant",
            "warmup": 0,
            "checkpoint_every": 0,
        },
        "placement": {"threads": 1},
        "output": str(folder / "accord"),
        "seed": job["seed"],
    }
    if "rows" in job:
        shared["data"] = {"path": job["rows"], "max_tokens": 256}
        shared["train"]["steps"] = job["iterations"]
        return shared | {"algorithm": {"type": method} | OPTIONS.get(method, {}) | job.get("algorithm", {})}
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in task.train))
    shared["data"] = {"path": str(prompts), "max_tokens": 256}
    shared["train"] |= {"iterations": job["iterations"], "rollouts_every": 0}
    shared["rollout"] = {"max_new_tokens": task.max_new_tokens, "samples": 1 if method == "ppo" else settings.GROUP}
    shared["rollout"] |= job.get("rollout", {})
    shared["reward"] = [{"function": f"{Path(__file__).with_name('tasks.py')}:{task.reward.__name__}"}]
    return shared | {"algorithm": {"type": method} | OPTIONS.get(method, {}) | job.get("algorithm", {})}


OPTIONS: dict[str, dict[str, Any]] = {
    "ppo": {
        "kl": {"coef": settings.PPO["kl"], "target": None},
        "clip": settings.PPO["clip"],
        "value_clip": settings.PPO["clip"],
        "value_coef": settings.PPO["value_coef"],
        "epochs": settings.PPO["epochs"],
        "minibatches": settings.PPO["minibatches"],
        "gamma": settings.PPO["gamma"],
        "lam": settings.PPO["lam"],
    },
    "grpo": {"kl": {"coef": settings.GRPO["kl"]}, "clip": settings.GRPO["clip"]},
    "rloo": {"kl": {"coef": settings.RLOO["kl"]}},
    **{method: {"beta": settings.BETA} for method in ("dpo", "kto", "bco")},
}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train as the job says; returns curve and seconds, and leaves the model in the job's folder."""
    config = recipe(job)
    started = time.perf_counter()
    done = accord.train(config, quiet=True)
    seconds = time.perf_counter() - started
    (Path(config["output"]) / "model").rename(Path(job["folder"]) / "model")
    return {"curve": _curve(job, done.metrics), "seconds": seconds}


def _curve(job: dict[str, Any], rows: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Score on the training prompts after so many responses (or rows), and KL in nats a response."""
    name = {"dpo": "rewards/margins", "kto": "loss"}.get(job["method"], "env/reward_mean")
    return [
        {"samples": job["batch"] * (n + 1), "score": row.get(name), "kl": row.get("objective/kl")}
        for n, row in enumerate(rows)
    ]


def main() -> None:
    """See the module."""
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text())
    result = run(job)
    (Path(job["folder"]) / "run.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
