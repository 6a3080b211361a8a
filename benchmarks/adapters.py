"""Each kind of adapter on the same task: trainable parameters, memory, speed, loss on held-out rows.

    python benchmarks/adapters.py MODEL DATA OUTPUT [KIND ...]

MODEL: folder of SmolLM2-135M-Instruct, or of another causal model; DATA: folder with `movie_reviews/movie_reviews.zip`; OUTPUT:
folder of the runs. The task: tell from a review's last 16 words whether it is positive or negative, as a word. Each kind runs in
a process of its own with its method's default learning rate, so its memory is its own. With KINDS only those run (again), and
the others' results are kept. Writes results/adapters.json and results/adapters.md beside this file.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STEPS, ROWS_A_STEP, HELD_OUT, WORDS = 16, 6, 24, 16
KINDS: dict[str, dict[str, Any]] = {
    "LoRA, r 16": {"method": "lora"},
    "LoRA, r 16, rank-stabilised": {"method": "lora", "rslora": True},
    "DoRA, r 16": {"method": "lora", "dora": True},
    "AdaLoRA, r 12 to 8": {"method": "adalora"},
    "IA3": {"method": "ia3"},
    "prompt tuning, 20 tokens of the vocabulary": {"method": "prompt"},
    "prompt tuning, 20 tokens of a text": {
        "method": "prompt",
        "text": "Say whether the film review is positive or negative.",
    },
    "prefix tuning, 20 tokens": {"method": "prefix"},
    "prefix tuning, 20 tokens from zero": {"method": "prefix", "init": "zero"},
    "prefix tuning, 20 tokens, projected": {"method": "prefix", "projection": True},
    "p-tuning, 20 tokens, MLP": {"method": "ptuning"},
    "p-tuning, 20 tokens, LSTM": {"method": "ptuning", "encoder": "lstm"},
}


def main(model: Path, data: Path, output: Path, chosen: list[str]) -> None:
    """Run the kinds, one process each, then write the results."""
    unknown = [name for name in chosen if name not in KINDS]
    if unknown:
        sys.exit(f"no kind {unknown[0]!r}; there are: {', '.join(map(repr, KINDS))}")
    train, held_out = write_rows(data / "movie_reviews" / "movie_reviews.zip", output)
    file = HERE / "results" / "adapters.json"
    results = json.loads(file.read_text(encoding="utf-8"))["kinds"] if chosen and file.is_file() else {}
    for name in chosen or KINDS:
        run = output / re.sub(r"\W+", "-", name).lower()
        shutil.rmtree(run, ignore_errors=True)
        recipe = {
            "model": {"path": str(model)},
            "adapter": KINDS[name],
            "data": {"path": str(train), "eval_path": str(held_out)},
            "algorithm": {"type": "sft"},
            "train": {"steps": STEPS, "batch_size": ROWS_A_STEP, "micro_batch_tokens": 512, "checkpoint_every": 0},
            "output": str(run),
        }
        words = [sys.executable, __file__, "--one", json.dumps(recipe)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, results[name], flush=True)
    write_results(file, {name: results[name] for name in KINDS if name in results}, model)


def write_rows(archive: Path, output: Path) -> tuple[Path, Path]:
    """The end of each review and its kind, shuffled; the first rows are held out."""
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    with zipfile.ZipFile(archive) as z:
        for name in sorted(name for name in z.namelist() if re.search(r"/(pos|neg)/.*\.txt$", name)):
            end = " ".join(z.read(name).decode("utf-8", "replace").split()[-WORDS:])
            rows.append({"prompt": f"{end}\nSentiment:", "completion": " positive" if "/pos/" in name else " negative"})
    random.Random(0).shuffle(rows)
    parts = {"train": rows[HELD_OUT:], "held_out": rows[:HELD_OUT]}
    for name, part in parts.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (output / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return output / "train.jsonl", output / "held_out.jsonl"


def run_one(recipe: dict[str, Any]) -> None:
    """Train one kind in this process; print what was measured as JSON."""
    from accord.config import SFTRecipe, build
    from accord.recipes import BUILDERS
    from accord.report import write_report
    from accord.training.loop import run_loop
    from accord.training.run import RunDirectory

    checked = build(SFTRecipe, recipe)
    directory = RunDirectory(checked, resume=False)
    parts = BUILDERS["sft"](checked)
    loaded = resident_mib()
    assert parts.evaluate is not None
    before = parts.evaluate()["eval/loss"]
    rows = run_loop(parts, directory, write_report, quiet=True).metrics
    directory.close()
    seconds = sum(row["time/update"] for row in rows)
    print(
        json.dumps(
            {
                "parameters": sum(weight.numel() for weight in parts.learner.weights.values()),
                "learning_rate": checked.train.learning_rate,
                "memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - loaded),
                "tokens_per_second": round(sum(row["tokens/total"] for row in rows) / seconds, 1),
                "load_average": round(os.getloadavg()[0], 1),
                "loss_before": round(before, 3),
                "loss_last_steps": round(sum(row["sft/loss"] for row in rows[-4:]) / 4, 3),
                "loss_held_out": round(rows[-1]["eval/loss"], 3),
                "saved_kib": round(sum(f.stat().st_size for f in directory.model.glob("*.safetensors")) / 1024),
            }
        )
    )


def resident_mib() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def write_results(file: Path, kinds: dict[str, dict[str, Any]], model: Path) -> None:
    """The raw numbers, and the table that the docs show."""
    from accord.training.run import environment

    setting = {"model": model.name, "steps": STEPS, "rows_a_step": ROWS_A_STEP, "held_out": HELD_OUT}
    file.parent.mkdir(exist_ok=True)
    facts = {"setting": setting, "environment": environment(), "kinds": kinds}
    file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    lines = [
        "| adapter | trainable parameters | learning rate | memory above the base, MiB | tokens/s | held-out loss | saved, KiB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['parameters']:,} | {row['learning_rate']:g} | {row['memory_mib']} | {_speed(row)} "
        f"| {row['loss_before']:.2f} → {row['loss_held_out']:.2f} | {row['saved_kib']:,} |"
        for name, row in kinds.items()
    ]
    file.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _speed(row: dict[str, Any]) -> str:
    """Tokens a second, if the machine was this process's own: with other work beside it the number says nothing."""
    alone = row.get("load_average", float("inf")) < 1.5
    return f"{row['tokens_per_second']:.0f}" if alone else "not measured"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        run_one(json.loads(sys.argv[2]))
    elif len(sys.argv) >= 4:
        main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(__doc__)
