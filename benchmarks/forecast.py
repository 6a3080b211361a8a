"""The forecast beside what the operating system measured, recipe by recipe.

    python benchmarks/forecast.py FOLDER [--smollm2 MODEL] [--allocator lean fast] [--only NAME ...] [--output JSON]

FOLDER takes the models (random weights), the data and the runs, about 3 GB. Recipes that OUTPUT has already and that are not run
again stay in it. Each recipe runs for two steps or iterations as
`python -m accord ...` in a process of its own, one after the other; its peak is the kernel's `VmHWM`. The forecast is made
before, by `accord forecast ... --json` on the same words. Rows are cut to `data.max_tokens`, so that sequences are as long as
the forecast takes them to be.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GIB = 2**30
WITHIN = 0.10
WORDS = [
    "the",
    "film",
    "was",
    "good",
    "slow",
    "fine",
    "cast",
    "end",
    "odd",
    "story",
    "people",
    "water",
    "house",
    "night",
    "river",
    "small",
    "great",
    "old",
    "new",
    "long",
    "way",
    "day",
]
MODELS: dict[str, dict[str, Any]] = {
    "quickstart-4M": {
        "kind": "llama",
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "heads": 6,
    },
    "llama-60M": {"kind": "llama", "hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 12, "heads": 10},
    "qwen3-50M": {"kind": "qwen3", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "heads": 8},
    "neox-70M": {
        "kind": "gpt_neox",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "heads": 8,
    },
    "gemma3-40M": {
        "kind": "gemma3_text",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 10,
        "heads": 6,
    },
    "gpt2-50M": {"kind": "gpt2", "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "heads": 8},
}
BFLOAT16 = ("qwen3-50M", "neox-70M", "gemma3-40M")
"""Those whose checkpoint is bfloat16."""
ROLLOUTS = (
    "--rollout.max_new_tokens 32 --data.max_prompt_tokens 96 --train.iterations 2 --reward {folder}/rewards.py:brevity"
)
RECIPES: dict[str, str] = {
    "sft, lora, float32, 4M": "sft quickstart-4M --train.micro_batch_tokens 4096 --train.batch_size 16",
    "sft, lora, bfloat16, SmolLM2": "sft smollm2",
    "sft, full, float32, 60M": "sft llama-60M --adapter null",
    "sft, full, bfloat16, 50M": "sft qwen3-50M --adapter null --model.dtype bfloat16",
    "sft, ia3, float32, 50M": "sft gpt2-50M --adapter.method ia3",
    "reward, lora, bfloat16, SmolLM2": "reward smollm2 --train.batch_size 2",
    "reward, full, float32, 50M": "reward qwen3-50M --adapter null --train.batch_size 2",
    "dpo, lora, bfloat16, SmolLM2": "dpo smollm2 --train.batch_size 2",
    "dpo, lora, bfloat16, 40M": "dpo gemma3-40M --train.batch_size 4",
    "dpo, full, float32, 60M": "dpo llama-60M --adapter null --train.batch_size 2",
    "kto, lora, bfloat16, 70M": "kto neox-70M --train.batch_size 4",
    "ppo, lora, bfloat16, SmolLM2": f"ppo smollm2 --train.batch_size 16 --algorithm.minibatches 2 {ROLLOUTS}",
    "ppo, full, float32, 60M": f"ppo llama-60M --adapter null --train.batch_size 16 --algorithm.minibatches 2 {ROLLOUTS}",
    "grpo, lora, bfloat16, 70M": f"grpo neox-70M --train.batch_size 16 --rollout.samples 4 {ROLLOUTS}",
    "grpo, full, shared layers, 50M": "grpo qwen3-50M --adapter null --train.batch_size 16 --rollout.samples 4 "
    f"--reference.source shared_layers --reference.k 6 {ROLLOUTS}",
    "sft, lora, checkpointing, bfloat16, SmolLM2": "sft smollm2 --train.activation_checkpointing true",
    "ppo, lora, checkpointing, float32, 60M": "ppo llama-60M --train.activation_checkpointing true --train.batch_size 16 "
    f"--algorithm.minibatches 2 {ROLLOUTS}",
    "rloo, dora, float32, 4M": "rloo quickstart-4M --adapter.dora true --train.batch_size 32 --rollout.samples 4 "
    f"--train.micro_batch_tokens 4096 {ROLLOUTS}",
}
"""Name -> command, model, options. `{folder}` is the benchmark's."""
QUANTIZED: dict[str, str] = {
    "sft, lora, nf4, SmolLM2": "sft smollm2 --model.quantize nf4",
    "dpo, lora, int8, SmolLM2": "dpo smollm2 --train.batch_size 2 --model.quantize int8",
}
"""Run where recipes have the key."""


def write_model(folder: Path, name: str) -> None:
    """A random model and a tokenizer of our own; in a process of its own, since torch makes a process large."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from accord.model.tiny import train_tokenizer

    given = dict(MODELS[name])
    rng = random.Random(0)
    tokenizer = train_tokenizer([" ".join(rng.choice(WORDS) for _ in range(200)) for _ in range(50)], 4096)
    kind, heads = given.pop("kind"), given.pop("heads")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    given |= {"num_attention_heads": heads, "max_position_embeddings": 2048, **ends}
    if kind == "gpt2":
        given["n_inner"] = given.pop("intermediate_size")
    elif kind != "gpt_neox":
        given |= {"num_key_value_heads": heads // 2, "head_dim": given["hidden_size"] // heads}
    vocabulary = 65536 if kind == "gemma3_text" else 8192
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, pad_token_id=tokenizer.pad_token_id, **given)
    dtype = torch.bfloat16 if name in BFLOAT16 else torch.float32
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(folder: Path) -> None:
    """Rows that are longer than any limit here, and a reward."""
    rng = random.Random(1)

    def text(words: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(words))

    rows = {
        "sft": lambda: {"prompt": text(60), "completion": " " + text(1500)},
        "pairs": lambda: {"prompt": text(60), "chosen": " " + text(1500), "rejected": " " + text(1500)},
        "labelled": lambda: {"prompt": text(60), "completion": " " + text(1500), "label": rng.random() < 0.5},
        "prompts": lambda: {"prompt": text(400)},
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row()) + "\n" for _ in range(48)))
    (folder / "rewards.py").write_text(
        "def brevity(prompts, responses):\n    return [-float(len(text)) for text in responses]\n"
    )


def words_of(recipe: str, folder: Path, smollm2: Path | None) -> list[str] | None:
    """The command line of a recipe; `None` if its model is not given."""
    command, model, *options = recipe.format(folder=folder).split()
    path = smollm2 if model == "smollm2" else folder / "models" / model
    if path is None:
        return None
    data = {"sft": "sft", "reward": "pairs", "dpo": "pairs", "kto": "labelled"}.get(command, "prompts")
    given = {option for option in options if option.startswith("--")}
    common = {"--train.batch_size": "4", "--train.micro_batch_tokens": "1024", "--data.max_tokens": "512"}
    common |= {"--train.steps": "2"} if command in ("sft", "reward", "dpo", "kto") else {}
    words = [
        command,
        "--model.path",
        str(path),
        "--data.path",
        str(folder / f"{data}.jsonl"),
        "--data.too_long",
        "truncate",
    ]
    for key, value in common.items():
        words += [] if key in given else [key, value]
    return [*words, *options]


def accord(words: list[str], folder: Path, log: Path) -> tuple[int, float]:
    """Run a command; its peak memory in bytes and its processor time in seconds, as the kernel counted them.

    The peak is the most that `VmHWM` was: a run sets it back at each phase, and `ru_maxrss` with it."""
    environment = {
        **os.environ,
        "ACCORD_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", "accord", *words], stdout=out, stderr=out, env=environment)
        peak, ended = 0, 0
        while not ended:
            peak = max(peak, _high_water(process.pid))
            time.sleep(0.02)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{log.read_text()[-2000:]}")
    return peak, usage.ru_utime + usage.ru_stime


def _high_water(process: int) -> int:
    """`VmHWM` of a process in bytes; 0 once it has ended."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def forecast(words: list[str]) -> dict[str, Any]:
    """What `accord forecast` says of the same words."""
    command = [sys.executable, "-m", "accord", "forecast", *words, "--device", "cpu", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def measure(name: str, words: list[str], folder: Path, allocator: str) -> dict[str, Any]:
    """One recipe: forecast, run, compare."""
    output = folder / "run"
    shutil.rmtree(output, ignore_errors=True)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    words = [*words, "--output", str(output), "--placement.allocator", allocator]
    told = forecast(words)
    peak, seconds = accord(words, folder, folder / "log.txt")
    return {
        "recipe": name,
        "allocator": allocator,
        "measured_gib": round(peak / GIB, 3),
        **_said(told, peak / GIB),
        "processor_seconds": round(seconds, 1),
        "command": "accord " + " ".join(words).replace(str(folder), "FOLDER"),
    }


def forecast_again(row: dict[str, Any], folder: Path, smollm2: Path | None) -> dict[str, Any]:
    """A measured row with what the forecast says of it now."""
    told = forecast(
        row["command"].removeprefix("accord ").replace("FOLDER", str(folder)).replace("SMOLLM2", str(smollm2)).split()
    )
    return {**row, **_said(told, row["measured_gib"])}


def _said(told: dict[str, Any], measured: float) -> dict[str, Any]:
    peak = told["peak_bytes"] / GIB
    terms = {f"{t['role']} {t['what']}": round(t["bytes"] / 2**20) for t in told["phases"][told["peak_phase"]]}
    return {
        "forecast_gib": round(peak, 3),
        "error": round(peak / measured - 1, 4),
        "phase": told["peak_phase"],
        "terms_mib": terms,
    }


def write(content: dict[str, Any], output: Path) -> None:
    """The JSON, and the table beside it."""
    output.write_text(json.dumps(content, indent=1) + "\n")
    output.with_suffix(".md").write_text(table(content["rows"]))


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = ["| recipe | allocator | forecast GiB | measured GiB | error | peak in |", "|---|---|---|---|---|---|"]
    for r in rows:
        sizes = f"{r['forecast_gib']:.2f} | {r['measured_gib']:.2f} | {r['error']:+.1%}"
        lines.append(f"| {r['recipe']} | {r['allocator']} | {sizes} | {r['phase']} |")
    for allocator in dict.fromkeys(r["allocator"] for r in rows):
        errors = [abs(r["error"]) for r in rows if r["allocator"] == allocator]
        good = sum(error <= WITHIN for error in errors)
        lines.append(f"\n{allocator}: {good} of {len(errors)} within {WITHIN:.0%}; greatest error {max(errors):.1%}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the recipes and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2-135M; recipes on it are left out without")
    parser.add_argument("--allocator", nargs="+", choices=("lean", "fast"), default=["lean"])
    parser.add_argument("--only", nargs="+", help="recipes whose names contain one of these")
    parser.add_argument("--quantized", action="store_true", help="also those with model.quantize")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "forecast.json")
    parser.add_argument("--again", action="store_true", help="measure nothing: forecast anew what OUTPUT has measured")
    parser.add_argument("--write-model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.write_model:
        write_model(folder / "models" / options.write_model, options.write_model)
        return
    if options.again:
        content = json.loads(options.output.read_text())
        content["rows"] = [forecast_again(row, folder, options.smollm2) for row in content["rows"]]
        write(content, options.output)
        return
    (folder / "models").mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        if not (folder / "models" / name / "config.json").is_file():
            subprocess.run([sys.executable, __file__, str(folder), "--write-model", name], check=True)
    write_data(folder)
    content = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "rows": json.loads(options.output.read_text())["rows"] if options.output.is_file() else [],
    }
    for name, recipe in {**RECIPES, **(QUANTIZED if options.quantized else {})}.items():
        words = words_of(recipe, folder, options.smollm2 and options.smollm2.resolve())
        if words is None or (options.only and not any(part in name for part in options.only)):
            continue
        for allocator in options.allocator:
            row = measure(name, words, folder, allocator)
            row["command"] = row["command"].replace(str(options.smollm2 and options.smollm2.resolve()), "SMOLLM2")
            print(table([row]).splitlines()[2], flush=True)
            others = [r for r in content["rows"] if (r["recipe"], r["allocator"]) != (name, allocator)]
            order = [*RECIPES, *QUANTIZED]
            content["rows"] = sorted([*others, row], key=lambda r: (r["allocator"] != "lean", order.index(r["recipe"])))
            write(content, options.output)


if __name__ == "__main__":
    main()
