"""A whole recipe from Python: the same sections as in a YAML file, as nested dicts.

    python examples/03_recipe.py [FOLDER]

`accord.train` validates the recipe, trains, and leaves a run directory: config.yaml, metrics.jsonl, checkpoints/, model/ and
report.html. FOLDER (default: runs/example/recipe) receives it as `sft/`, beside the data and the tiny model it starts from.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import accord
from accord.data.reviews import write_corpus, write_examples
from accord.model.tiny import write_tiny_model


def main(folder: Path) -> None:
    """Write data and a model, then train on them."""
    base = write_tiny_model(folder / "start", write_corpus(400, seed=0), hidden=64, heads=4)
    rows = [{"prompt": e.prompt, "completion": e.completion} for e in write_examples(320, seed=0)]
    data = folder / "examples.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows of prompt and completion: {data}")

    run = accord.train(
        {
            "algorithm": {"type": "sft"},  # says which recipe this is
            "model": {"path": str(base)},
            "adapter": None,  # no adapter: all weights learn
            "data": {"path": str(data), "eval_fraction": 0.1},
            "train": {"epochs": 2, "batch_size": 16, "learning_rate": 5e-3, "checkpoint_every": 20, "log_every": 6},
            "output": str(folder / "sft"),
        }
    )

    first, last = run.metrics[0], run.metrics[-1]
    print(f"loss: {first['sft/loss']:.3f} at the start, {last['sft/loss']:.3f} at the end (nats a token)")
    print(f"held-out loss: {last['eval/loss']:.3f}")
    print(f"report: {run.report}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example/recipe"))
