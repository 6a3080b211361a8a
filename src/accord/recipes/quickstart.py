"""The whole road on a small model made on the spot: pre-training, SFT, reward model, PPO. Offline, minutes on two cores.

A seeded grammar (`accord.data.reviews`) writes film reviews and knows how positive any text is, so the result is judged by a
truth that the trained reward model never sees.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accord.config import ModelConfig, PPORecipe, Recipe, RewardRecipe, SFTRecipe, build
from accord.data.reviews import (
    probability_positive,
    well_formed,
    write_corpus,
    write_examples,
    write_pairs,
    write_prompts,
)
from accord.errors import RunError
from accord.model.tiny import write_tiny_model
from accord.recipes import train
from accord.recipes.generate import GenerateOptions, generate
from accord.training.run import is_used
from accord.types import Record, Rollout

REVIEW_TOKENS = 72
"""Longest review; nearly all of the grammar's are shorter."""
HELD_OUT = 128
"""Prompts with titles that no stage has seen."""


@dataclass(frozen=True)
class Judgement:
    """Reviews of held-out films, judged by the grammar."""

    probability_positive: float
    """Mean posterior that the review is positive."""
    well_formed: float
    """Share of sentences that the grammar could have written."""
    samples: list[tuple[str, str, float]]
    """Prompt, response and probability of a few."""


@dataclass(frozen=True)
class Result:
    """What the road led to."""

    folder: Path
    before: Judgement
    after: Judgement
    kl: float
    """Nats a response between the trained policy and its start, mean of the last five iterations."""
    accuracy: float
    """Of the reward model on held-out pairs."""
    seconds: float


def truth(prompts: Sequence[str], responses: Sequence[str], **_: Any) -> list[float]:
    """The grammar's own judgement as a reward function; the quickstart logs it with weight 0."""
    return [probability_positive(response) for response in responses]


def run_road(folder: Path, model: str | None = None, seed: int = 0, say: Callable[[str], None] = print) -> Result:
    """Run all stages; each is an ordinary run directory under `folder`.

    Args:
        folder: new or empty.
        model: a base of one's own instead of one made on the spot.
        seed: of everything.
        say: told at the start of each stage.

    Raises:
        RunError: the folder is not empty.
    """
    started = time.perf_counter()
    if is_used(folder):
        raise RunError(
            f"{folder} is not empty, so a quickstart has run there already. Delete the folder, or give another one with --output"
        )
    _write_data(folder, seed)
    base = model or _pretrain(folder, seed, say)
    stages = _stages(folder, base, seed)
    say("2/4  Fine-tuning: learn to answer a prompt (LoRA on the frozen base)")
    train(stages["sft"])
    say("3/4  Reward model: which of two reviews is better? (LoRA, same base)")
    reward = train(stages["reward"])
    say("4/4  PPO: write what the reward model likes (four roles on one base)")
    ppo = train(stages["ppo"])
    before, after = (_judge(folder / stage / "model", folder, seed) for stage in ("sft", "ppo"))
    last = [row["objective/kl"] for row in ppo.metrics[-5:]]
    result = Result(
        folder=folder,
        before=before,
        after=after,
        kl=sum(last) / len(last),
        accuracy=reward.metrics[-1]["eval/accuracy"],
        seconds=time.perf_counter() - started,
    )
    (folder / "result.json").write_text(json.dumps(asdict(result), indent=1, default=str), encoding="utf-8")
    return result


def _pretrain(folder: Path, seed: int, say: Callable[[str], None]) -> str:
    say("1/4  Base model: a small Llama learns to write film reviews (all weights)")
    start = write_tiny_model(folder / "data" / "start", write_corpus(4000, seed), seed=seed)
    recipe = build(
        SFTRecipe,
        {
            "model": {"path": str(start)},
            "adapter": None,
            "data": {"path": str(folder / "data" / "corpus.jsonl")},
            "train": {
                "steps": 750,
                "batch_size": 16,
                "learning_rate": 5e-3,
                "warmup": 20,
                "min_learning_rate": 0.05,
                "optimizer": {"name": "adamw", "betas": [0.9, 0.95]},
                "checkpoint_every": 250,
                "log_every": 75,
            },
            "output": str(folder / "base"),
            "seed": seed,
        },
    )
    train(recipe)
    return str(folder / "base" / "model")


def _stages(folder: Path, base: str, seed: int) -> dict[str, Recipe]:
    """The three recipes; a person can run each alone with `accord sft|reward|ppo RUN/config.yaml`."""
    common: dict[str, Any] = {"adapter": {"r": 16, "alpha": 32}, "seed": seed}
    sft, reward = str(folder / "sft" / "model"), str(folder / "reward" / "model")
    return {
        "sft": build(
            SFTRecipe,
            common,
            {
                "model": {"path": base},
                "data": {"path": str(folder / "data" / "examples.jsonl"), "eval_fraction": 0.1},
                "train": {"epochs": 1, "batch_size": 64, "learning_rate": 1e-3, "log_every": 5},
                "output": str(folder / "sft"),
            },
        ),
        "reward": build(
            RewardRecipe,
            common,
            {
                "model": {"path": sft},
                "data": {"path": str(folder / "data" / "pairs.jsonl"), "eval_fraction": 0.1},
                "train": {"epochs": 1, "batch_size": 16, "learning_rate": 2e-3, "log_every": 50},
                "output": str(folder / "reward"),
            },
        ),
        "ppo": build(
            PPORecipe,
            common,
            {
                "model": {"path": sft},
                "data": {"path": str(folder / "prompts.jsonl")},
                "reward": [
                    {"model": reward, "name": "reward"},
                    {"function": "accord.recipes.quickstart:truth", "weight": 0.0},
                ],
                "critic": {"start": "reward"},
                "rollout": {"max_new_tokens": REVIEW_TOKENS},
                "algorithm": {"kl": {"coef": 0.02, "target": None}, "missing_eos_penalty": 1.0, "epochs": 2},
                "train": {"iterations": 30, "batch_size": 64, "learning_rate": 8e-4},
                "output": str(folder / "ppo"),
            },
        ),
    }


def _write_data(folder: Path, seed: int) -> None:
    data = folder / "data"
    data.mkdir(parents=True)
    _write(data / "corpus.jsonl", ({"text": text} for text in write_corpus(12_000, seed)))
    _write(data / "examples.jsonl", map(_row, write_examples(1200, seed)))
    _write(data / "pairs.jsonl", map(_row, write_pairs(8000, seed)))
    _write(data / "held_out.jsonl", map(_row, write_prompts(HELD_OUT, seed, held_out=True)))
    _write(folder / "prompts.jsonl", map(_row, write_prompts(1000, seed)))


def _row(record: Record) -> Mapping[str, Any]:
    """A record as a row of its file, without what is empty."""
    return {key: value for key, value in asdict(record).items() if value not in (None, {})}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _judge(model: Path, folder: Path, seed: int) -> Judgement:
    """Sample a review of each held-out film, and ask the grammar."""
    lines = (folder / "data" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    options = GenerateOptions(max_new_tokens=REVIEW_TOKENS, max_sequences=HELD_OUT, seed=seed)
    rollouts = generate(ModelConfig(path=str(model)), prompts, options)
    return judge(rollouts)


def judge(rollouts: Sequence[Rollout]) -> Judgement:
    """The grammar's judgement of some reviews."""
    probabilities = [probability_positive(rollout.response_text) for rollout in rollouts]
    forms = [well_formed(rollout.response_text) for rollout in rollouts]
    shown = [(r.prompt_text, r.response_text, p) for r, p in zip(rollouts[:3], probabilities, strict=False)]
    return Judgement(sum(probabilities) / len(rollouts), sum(forms) / len(rollouts), shown)
