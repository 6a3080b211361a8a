"""The sides of `speed.py` that are Accord: whole recipes, one iteration a unit. python -m contest_speed.ours JOB.json"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from base_type import NAME
from contest_speed.serve import Facts, serve
from contest_speed.settings import LORA, RATE

from accord.config import RECIPES, build
from accord.ops.logprobs import token_logprobs
from accord.recipes import BUILDERS
from accord.rollout.protocol import Request
from accord.training.console import Console
from accord.training.loop import Parts, learn, seed_everything

Unit = Callable[[], Facts]


def recipe(job: Facts, data: str, batch: int, **sections: Any) -> dict[str, Any]:
    """The recipe of a job."""
    model = job.get("base", job["model"])
    rollouts = "rollout" in sections
    train = {"batch_size": batch, "learning_rate": RATE, "schedule": "constant", "warmup": 0, "checkpoint_every": 0}
    train |= {"iterations": 1000} if rollouts else {"steps": 1000}
    return {
        "model": {"path": model, "dtype": NAME},
        "adapter": LORA | job.get("adapter", {}),
        "data": {"path": str(Path(job["work"]) / data), "max_tokens": job["size"]["max_tokens"]},
        "train": train | job.get("train", {}),
        "output": str(Path(job["work"]) / "never-written"),
    } | sections


class Iterations:
    """The loop's own parts, run one iteration at a time; nothing is written."""

    def __init__(self, kind: str, config: dict[str, Any]) -> None:
        self.parts: Parts = BUILDERS[kind](build(RECIPES[kind], config))
        self.console = Console(kind, 1000, quiet=True)
        self.iteration = 0

    def __call__(self) -> Facts:
        """Collect, prepare, learn. Preparations with the starting weights (DPO's reference) count as part of it."""
        parts = self.parts
        if parts.begin is not None:
            cache = Path(os.environ["ACCORD_CACHE"])
            shutil.rmtree(cache, ignore_errors=True)
            parts.begin(self.console)
        seed_everything(0, self.iteration)
        items, _ = parts.source.collect(self.iteration, self.console)
        _, metrics = learn(items, parts.algorithm, parts.learner, parts.scorer, 0, self.iteration)
        if parts.engine is not None:
            parts.engine.load(None, self.iteration + 1)
        self.iteration += 1
        return {"tokens": metrics["tokens/total"], "computed": metrics["tokens/computed"]}


def examples(job: Facts) -> Unit:
    """SFT, a reward model or DPO on the file `job["file"]`, all its rows a step."""
    file = job["file"]
    rows = len((Path(job["work"]) / file).read_text().splitlines())
    return Iterations(job["kind"], recipe(job, file, rows))


def rollouts(job: Facts) -> Unit:
    """GRPO, RLOO or PPO."""
    size, kind = job["size"], job["kind"]
    samples = 1 if kind == "ppo" else job.get("samples", size["samples"])
    file = "ppo_prompts.jsonl" if kind == "ppo" else "prompts.jsonl"
    prompts = size["ppo_prompts"] if kind == "ppo" else size["prompts"]
    sections: dict[str, Any] = {
        "rollout": {"max_new_tokens": size["new_tokens"], "samples": samples},
        "reward": [{"function": f"{Path(__file__).with_name('rewards.py')}:vowels"}],
        "algorithm": {"type": kind, "kl": {"coef": 0.05, "target": None} if kind == "ppo" else {"coef": 0.05}},
    }
    if kind == "ppo":
        sections["algorithm"] |= {"epochs": size["ppo_epochs"], "minibatches": size["ppo_minibatches"]}
        sections["critic"] = {"source": job["critic"]}
    job = job | {"base": str(Path(job["work"]) / "endless")}
    return Iterations(kind, recipe(job, file, prompts * samples, **sections))


def generation(job: Facts) -> Unit:
    """Responses alone: of long-tailed lengths with the model's own EOS, or of one length."""
    size, fixed = job["size"], job["fixed"]
    longest = size["new_tokens"] if fixed else size["longest_response"]
    sections: dict[str, Any] = {
        "rollout": {"max_new_tokens": longest, "samples": 2},
        "reward": [{"function": f"{Path(__file__).with_name('rewards.py')}:vowels"}],
        "algorithm": {"type": "grpo"},
    }
    base = str(Path(job["work"]) / "endless") if fixed else job["model"]
    job = job | {"base": base, "size": size | {"max_tokens": size["max_tokens"] + longest}}
    iterations = Iterations("grpo", recipe(job, "requests.jsonl", 2 * size["requests"], **sections))
    collector: Any = iterations.parts.source.collector  # type: ignore[attr-defined]
    prompts = [
        collector.tokenizer(line["prompt"], add_special_tokens=True).input_ids for line in _lines(job, "requests")
    ]

    def unit() -> Facts:
        iterations.iteration += 1
        requests = [Request(tuple(ids), 1000 * iterations.iteration + n) for n, ids in enumerate(prompts)]
        done = collector.engine.generate(requests, collector.sampling)
        return {"tokens": sum(len(one.token_ids) for one in done)}

    return unit


def _lines(job: Facts, name: str) -> list[Facts]:
    import json

    return [json.loads(line) for line in (Path(job["work"]) / f"{name}.jsonl").read_text().splitlines()]


def plain(job: Facts) -> Unit:
    """SFT as `examples`, but the log-probabilities come from whole logits through autograd: what tiles save."""
    import accord.model.forward as module

    def whole(hidden_KH: Any, weight_VH: Any, bias_V: Any, targets_K: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return token_logprobs(hidden_KH, weight_VH, bias_V, targets_K, **options)
        logits = torch.nn.functional.linear(hidden_KH, weight_VH, bias_V).float()
        logprobs = logits.log_softmax(-1).gather(-1, targets_K[:, None]).squeeze(-1)
        return logprobs, torch.zeros_like(logprobs)

    module.token_logprobs = whole  # type: ignore[assignment]  # only here, to measure what is otherwise not there
    return examples(job)


def growth(job: Facts) -> Unit:
    """The same kind of work, 1, 2, 4, 8 times as much of it."""
    work, size = job["work"], job["size"]
    units: dict[str, Unit] = {}
    for factor in size["growth"]:
        for name in ("rows", "lengths"):
            units[f"{name} x{factor}"] = examples(job | {"file": f"{name}{factor}.jsonl", "kind": "sft", "work": work})
        units[f"samples x{factor}"] = rollouts(job | {"kind": "grpo", "samples": size["growth_samples"] * factor})

    def unit() -> Facts:
        parts = {}
        for name, one in units.items():
            started = time.perf_counter()
            tokens = one()["computed"]  # a prompt counts once for all its samples
            parts[name] = {"seconds": time.perf_counter() - started, "tokens": tokens}
        return {"parts": parts}

    return unit


KINDS: dict[str, Callable[[Facts], Unit]] = {
    "examples": examples,
    "rollouts": rollouts,
    "generation": generation,
    "plain": plain,
    "growth": growth,
}


def prepare(job: Facts) -> Unit:
    """The unit of a job."""
    os.environ["ACCORD_CACHE"] = str(Path(job["work"]) / "cache")
    return KINDS[job["what"]](job)


if __name__ == "__main__":
    serve(prepare)
