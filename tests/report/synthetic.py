"""Run directories made up for the report's tests."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from accord.config import PPORecipe, RewardRecipe, SFTRecipe, build, dump

PROMPTS = [f"Human: What is {n} plus {n}?\n\nAssistant:" for n in range(1, 9)]
COMMON = {"tokens/per_second": 900.0, "time/iteration": 4.2, "time/update": 1.4, "time/data": 0.01}


def make_run(path: Path, kind: str, iterations: int, planned: int | None = None, rollouts: bool = True) -> Path:
    """Write a run directory such as a run of so many iterations leaves behind."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(_config(kind, path, planned or max(iterations, 1)), encoding="utf-8")
    rng = random.Random(0)
    write_rows(path, [_row(kind, i, iterations, rng) for i in range(1, iterations + 1)])
    environment = {"accord": "0.1.0", "python": "3.11.7", "versions": {"torch": "2.13.0"}, "device": "cpu"}
    (path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    if kind == "ppo" and rollouts and iterations:
        for iteration in sorted({1, iterations}):
            write_rollouts(path, iteration, _samples(iteration, iteration / iterations, rng))
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "metrics.jsonl").write_text(text, encoding="utf-8")


def write_rollouts(path: Path, iteration: int, rows: list[dict[str, Any]]) -> None:
    (path / "rollouts").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path / "rollouts" / f"iteration-{iteration:06d}.parquet")


def _config(kind: str, path: Path, planned: int) -> str:
    base: dict[str, Any] = {"model": {"path": "gpt2"}, "data": {"path": "rows.jsonl"}, "output": str(path)}
    if kind == "ppo":
        return dump(build(PPORecipe, base, {"reward": "runs/reward/model", "train": {"iterations": planned}}))
    return dump(build({"sft": SFTRecipe, "reward": RewardRecipe}[kind], base, {"train": {"steps": planned}}))


def _row(kind: str, i: int, n: int, rng: random.Random) -> dict[str, Any]:
    t, noise = i / n, rng.gauss(0, 1)
    row: dict[str, Any] = {"iteration": i, "step": i, **COMMON, "tokens/per_second": 900 + 40 * noise}
    row |= {"memory/peak_gib": 3.1 + 0.1 * min(1, 5 * t), "optim/grad_norm": 0.6 * math.exp(0.3 * noise)}
    row |= {"optim/learning_rate": 1.41e-5 * min(1, 30 * t) * (0.55 + 0.45 * math.cos(math.pi * t))}
    if kind == "ppo":
        return row | _ppo_row(t, noise, rng)
    loss = {"sft": 1.8 + 1.6 * math.exp(-4 * t), "reward": 0.45 + 0.24 * math.exp(-3 * t)}[kind] + 0.03 * noise
    row[f"{kind}/loss"] = loss
    if kind == "sft":
        row["sft/perplexity"] = math.exp(loss)
    else:
        row |= {"reward/accuracy": 0.5 + 0.25 * t + 0.04 * noise, "reward/margin": 1.2 * t + 0.1 * noise}
        row |= {"reward/chosen_mean": 0.6 * t, "reward/rejected_mean": -0.6 * t}
    if i == n or i % max(1, n // 8) == 0:
        row["eval/loss"] = loss + 0.05
        row |= {"eval/accuracy": 0.5 + 0.2 * t, "eval/margin": t} if kind == "reward" else {}
    return row


def _ppo_row(t: float, noise: float, rng: random.Random) -> dict[str, Any]:
    score, length = -0.4 + 2.0 * t**0.6 + 0.12 * noise, 60 + 14 * t + 4 * rng.gauss(0, 1)
    return {
        "env/reward_mean": score, "env/reward_std": 0.8 - 0.3 * t, "env/reward/reward": score * 0.9,
        "env/reward/brevity": -0.2 + 0.3 * t, "ppo/mean_scores": score, "ppo/mean_non_score_reward": -0.8 * t,
        "objective/kl": 6.2 * t**0.7 + 0.2 * rng.random(), "objective/kl_coef": 0.2 - 0.06 * t,
        "objective/entropy": 2.6 - 0.7 * t + 0.05 * noise, "ppo/loss/policy": -0.01 + 0.004 * noise,
        "ppo/loss/value": 0.5 * math.exp(-3 * t) + 0.1, "ppo/loss/total": 0.05,
        "ppo/policy/clipfrac": 0.05 + 0.01 * noise,
        "ppo/policy/approxkl": 0.004 + 0.001 * abs(noise), "ppo/policy/ratio_mean": 1 + 0.001 * noise,
        "ppo/policy/ratio_max": 2.2 + 0.4 * abs(noise), "ppo/val/clipfrac": 0.2 * (1 - t), "ppo/val/mean": score * 0.8,
        "ppo/val/var_explained": 0.6 * (1 - math.exp(-5 * t)), "ppo/returns/mean": score - 0.1,
        "ppo/steps_skipped": 0.0,
        "sampling/logprob_difference_max": 2e-5 * (1 + abs(noise)), "sampling/logprob_difference_mean": 1e-6,
        "sampling/length_mean": length, "sampling/length_max": min(128.0, length + 50), "sampling/lag": 0.0,
        "sampling/finished_fraction": 0.7 + 0.25 * t, "sampling/tokens_per_second": 410 + 20 * noise,
        "time/rollout": 2.4 + 0.2 * abs(noise), "time/reward": 0.05, "time/score": 0.4,
    }  # fmt: skip


def _samples(iteration: int, t: float, rng: random.Random) -> list[dict[str, Any]]:
    words = ["The sum is", "Let me think.", "Twice the number makes", "I would say", "That is", "Of course:"]
    rows = []
    for n, prompt in enumerate(PROMPTS, 1):
        response = f"{rng.choice(words)} {2 * n if t > 0.5 else rng.randint(1, 40)}. " * (1 if t > 0.5 else 4)
        score = -0.4 + 2 * t + rng.gauss(0, 0.6)
        rows.append(
            {"iteration": iteration, "prompt": prompt, "response": response.strip(), "score": score, "kl": 6 * t,
             "finish_reason": "stop" if t > 0.5 else "length", "length": len(response.split()), "version": iteration,
             "score/reward": score, "score/brevity": -0.1}
        )  # fmt: skip
    return rows
