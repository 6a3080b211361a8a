"""The whole road on a real model and real data: SFT and a reward model on HH-RLHF pairs, PPO with that reward model, and PPO
toward positive film reviews with a sentiment lexicon as the reward.

    python benchmarks/real_road.py MODEL DATA OUTPUT

MODEL: folder of SmolLM2-135M-Instruct; DATA: folder with `hh_rlhf_harmless/` and `movie_reviews/`; OUTPUT: folder of the runs.
Needs `pip install vaderSentiment==3.3.2`. Each stage is an `accord` command in a process of its own, so its seconds and peak
memory are its own. Writes results/real_road.json and results/real_road.md beside this file.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REWARD = HERE / "film_sentiment.py"
MICRO = ("--train.micro_batch_tokens", "2048")
CURVES = ("env/reward_mean", "objective/kl", "sampling/length_mean", "reward/accuracy", "sft/loss")


def main(model: Path, data: Path, output: Path) -> None:
    """Run every stage that has not run yet, then write the results."""
    output.mkdir(parents=True, exist_ok=True)
    pairs, held_out = (data / "hh_rlhf_harmless" / name for name in ("train.jsonl.gz", "test.jsonl.gz"))
    films = write_film_prompts(data / "movie_reviews" / "movie_reviews.zip", output / "films.jsonl")
    rows = ("--data.max_tokens", "384", "--data.on_bad_row", "skip")
    merged, reward = output / "sft" / "merged", output / "reward" / "model"
    ppo = ("--algorithm.kl.coef", "0.05", "--algorithm.epochs", "2", "--train.learning_rate", "1e-4", *MICRO)
    stages: dict[str, list[Any]] = {
        "sft": ["sft", "--model.path", model, "--data.path", pairs, *rows, "--data.limit", 340, "--train.batch_size", 16,
                "--data.eval_fraction", 0.1, *MICRO],
        "merge": ["merge", output / "sft" / "model", merged, "--dtype", "bfloat16"],
        "reward": ["reward", "--model.path", merged, "--data.path", pairs, *rows, "--data.limit", 540,
                   "--data.eval_path", held_out, "--train.batch_size", 16, "--train.learning_rate", 2e-4, *MICRO],
        "ppo_reward_model": ["ppo", "--model.path", merged, "--data.path", pairs, "--data.on_bad_row", "skip",
                             "--data.max_prompt_tokens", 96, "--reward", reward, "--algorithm.reward_normalize", "true",
                             "--rollout.max_new_tokens", 48, "--train.iterations", 16, "--train.batch_size", 24, *ppo],
        "ppo_film_sentiment": ["ppo", "--model.path", model, "--data.path", films, "--reward", f"{REWARD}:positive",
                               "--rollout.max_new_tokens", 24, "--train.iterations", 20, "--train.batch_size", 32, *ppo],
    }  # fmt: skip
    seconds: dict[str, float] = {}
    for name, words in stages.items():
        seconds[name] = run_stage(name, [str(word) for word in words], output)
    write_results(output, stages, seconds)


def write_film_prompts(archive: Path, path: Path) -> Path:
    """The first eight words of each of 2,000 film reviews: half of them positive, half negative."""
    with zipfile.ZipFile(archive) as z:
        names = sorted(name for name in z.namelist() if name.endswith(".txt") and ("/pos/" in name or "/neg/" in name))
        texts = [re.sub(r"\s+", " ", z.read(name).decode("utf-8", "replace")).strip() for name in names]
    prompts = [{"prompt": "Film review: " + " ".join(text.split(" ")[:8])} for text in texts]
    random.Random(0).shuffle(prompts)
    path.write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    return path


def run_stage(name: str, words: list[str], output: Path) -> float:
    """Run one command unless it has run; returns its wall-clock seconds, start of the process included."""
    record = output / f"{name}.seconds"
    if record.exists():
        return float(record.read_text())
    resumable = words[0] != "merge"
    command = [sys.executable, "-m", "accord", *words, *(["--output", str(output / name)] if resumable else [])]
    if resumable and (output / name).exists():
        command.append("--resume")
    print(f"\n=== {name}: accord {' '.join(command[3:])}", flush=True)
    started = time.perf_counter()
    subprocess.run(command, check=True)
    record.write_text(f"{time.perf_counter() - started:.1f}")
    return float(record.read_text())


def write_results(output: Path, stages: dict[str, list[Any]], seconds: dict[str, float]) -> None:
    """Curves and figures of all stages as JSON, and the table made from them."""
    environment = json.loads((output / "reward" / "environment.json").read_text())
    result: dict[str, Any] = {"environment": environment, "stages": {}}
    for name in stages:
        file = output / name / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        stage: dict[str, Any] = {"seconds": seconds[name], "iterations": len(rows)}
        if rows:
            stage["peak_gib"] = max(row["memory/peak_gib"] for row in rows)
            stage["curves"] = {key: [row[key] for row in rows] for key in CURVES if key in rows[0]}
            stage["held_out"] = {key: value for key, value in rows[-1].items() if key.startswith("eval/")}
            if "env/reward_mean" in rows[0]:
                stage["score_first_5"] = statistics.mean(row["env/reward_mean"] for row in rows[:5])
                stage["score_last_5"] = statistics.mean(row["env/reward_mean"] for row in rows[-5:])
                stage["score_std"] = statistics.mean(row["env/reward_std"] for row in rows[:5])
                stage["kl_last_5"] = statistics.mean(row["objective/kl"] for row in rows[-5:])
        result["stages"][name] = stage
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "real_road.json").write_text(json.dumps(result, indent=1) + "\n")
    (results / "real_road.md").write_text(table(result))
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    env = result["environment"]
    lines = [
        f"Commit {env['commit']}, {env['processor']}, {env['cores']} cores, torch {env['torch']}.",
        "",
        "| stage | result | seconds | peak memory |",
        "|---|---|---|---|",
    ]
    for name, stage in result["stages"].items():
        peak = f"{stage['peak_gib']:.1f} GiB" if "peak_gib" in stage else ""
        lines.append(f"| {name.replace('_', ' ')} | {outcome(stage)} | {stage['seconds']:,.0f} | {peak} |")
    return "\n".join(lines) + "\n"


def outcome(stage: dict[str, Any]) -> str:
    """What a stage led to, in a few words."""
    if "score_first_5" in stage:
        return (
            f"score {stage['score_first_5']:.3f} → {stage['score_last_5']:.3f} (first 5, last 5 iterations of "
            f"{stage['iterations']}), KL {stage['kl_last_5']:.1f} nats"
        )
    held = stage.get("held_out", {})
    if "eval/accuracy" in held:
        return f"{held['eval/accuracy']:.1%} of held-out pairs right"
    return f"held-out loss {held['eval/loss']:.3f}" if "eval/loss" in held else "adapter folded into the base"


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*(Path(argument) for argument in sys.argv[1:]))
