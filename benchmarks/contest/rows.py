"""Rows for methods that learn from examples: the base's own responses, scored.

    python -m contest.rows MODEL DATA TASK OUTPUT

Writes TASK-pairs.jsonl (better and worse of the responses to a prompt), TASK-labels.jsonl (the same responses, each by itself, up
or down) and TASK-scores.jsonl (the same with their scores).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from contest import settings
from contest.judge import draw, load
from contest.tasks import Task, load_task

DRAWS = 32
"""Responses drawn to each training prompt."""
ROWS = 80
"""Responses drawn at once; all prompts of a task have as many tokens."""


def main() -> None:
    """See the module."""
    torch.set_num_threads(1)
    model, data, name, output = sys.argv[1:5]
    base, tokenizer = load(model)
    task = load_task(name, tokenizer, Path(data))
    pairs = draw_pairs(base, tokenizer, task)[: settings.PAIRS[name]]
    labels = [
        {"prompt": pair["prompt"], "completion": pair[kind], "label": kind == "chosen"}
        for pair in pairs
        for kind in ("chosen", "rejected")
    ]
    scored = [{"prompt": row["prompt"], "completion": row["completion"]} for row in labels]
    values = task.reward(prompts=[r["prompt"] for r in scored], responses=[r["completion"] for r in scored])
    scores = [row | {"score": value} for row, value in zip(scored, values, strict=True)]
    for kind, rows in (("pairs", pairs), ("labels", labels), ("scores", scores)):
        path = Path(output) / f"{name}-{kind}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@torch.no_grad()
def draw_pairs(base: Any, tokenizer: Any, task: Task) -> list[dict[str, str]]:
    """Per prompt, the best with the worst response, the second best with the second worst, and so on while they differ."""
    torch.manual_seed(7)
    prompts = task.train if len(task.train) > 100 else task.train * 2
    draws = 8 if len(task.train) > 100 else DRAWS
    rounds: list[list[dict[str, str]]] = []
    at_once = max(1, ROWS // draws)
    for first in range(0, len(prompts), at_once):
        part = [prompt for prompt in prompts[first : first + at_once] for _ in range(draws)]
        ids = tokenizer(part, return_tensors="pt", add_special_tokens=False).input_ids
        drawn, lengths = draw(base, ids, task.max_new_tokens, tokenizer.eos_token_id)
        texts = [
            tokenizer.decode(row[: int(n)], skip_special_tokens=True) for row, n in zip(drawn, lengths, strict=True)
        ]
        rounds += [_pairs(task, part[n], sorted(set(texts[n : n + draws]))) for n in range(0, len(part), draws)]
    deepest = max(len(found) for found in rounds)
    return [found[depth] for depth in range(deepest) for found in rounds if depth < len(found)]


def _pairs(task: Task, prompt: str, texts: list[str]) -> list[dict[str, str]]:
    """Best with worst, second best with second worst, of the responses to one prompt."""
    ranked = sorted(texts, key=lambda text: -task.reward(prompts=[prompt], responses=[text])[0])
    both = zip(ranked, reversed(ranked), strict=True)
    return [{"prompt": prompt, "chosen": up, "rejected": down} for up, down in both if _above(task, prompt, up, down)]


def _above(task: Task, prompt: str, up: str, down: str) -> bool:
    better, worse = task.reward(prompts=[prompt, prompt], responses=[up, down])
    return better > worse and bool(up.strip()) and bool(down.strip())


if __name__ == "__main__":
    main()
