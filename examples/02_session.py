"""PPO with a loop of one's own: `generate`, score as you like, `step`, `save`, and go on later.

    python examples/02_session.py [FOLDER]

The prompts, the scores and the loop are yours; sampling, the four roles and the update are those of `accord ppo`. The model is
tiny and hardly trained, so the text is not worth reading; what to look at is that the score rises while the KL stays small.
FOLDER (default: runs/example/session) receives the base and the trained adapter with its critic.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import accord
from accord.data.reviews import write_corpus, write_prompts
from accord.model.tiny import write_tiny_model
from accord.types import Rollout

ITERATIONS, BATCH = 8, 48


def main(folder: Path) -> None:
    """Make a base, run a session on it, save the adapter."""
    base = make_base(folder)
    config = {
        "model": {"path": str(base)},
        "adapter": {"r": 8},
        "rollout": {"max_new_tokens": 24},
        "algorithm": {"kl": {"coef": 0.02, "target": None}, "epochs": 2, "minibatches": 2},
        "train": {"iterations": ITERATIONS, "batch_size": BATCH, "learning_rate": 2e-3},
    }
    session = accord.PPO(config)
    prompts = [record.prompt for record in write_prompts(ITERATIONS * BATCH, seed=1)]
    for iteration in range(ITERATIONS):
        rollouts = session.generate(prompts[iteration * BATCH : (iteration + 1) * BATCH])
        stats = session.step(rollouts, scores=[score(rollout) for rollout in rollouts])
        print(
            f"iteration {iteration + 1}   score {stats['env/reward_mean']:.3f}   "
            f"KL {stats['objective/kl']:.2f} nats a response   length {stats['sampling/length_mean']:.0f}"
        )
    saved = session.save(folder / "model")
    print(f"saved: {saved}")

    # Later: the policy and its critic as they were, and two responses that a person wrote.
    later = accord.PPO(config | {"model": {"path": str(saved)}, "critic": {"start": "saved"}})
    stats = later.step(["Review of a slow film:"] * 2, [" It never begins.", " I left early, and happily."], [0.2, 1.0])
    print(f"learnt from two answers of a person, KL to what was saved {stats['objective/kl']:.2f}")


def score(rollout: Rollout) -> float:
    """1 for a response that ends by itself, 0 for one that was cut at the limit: a toy that any model can learn."""
    return float(rollout.finish_reason == "stop")


def make_base(folder: Path) -> Path:
    """A tiny Llama after a few steps of pre-training on film reviews."""
    texts = write_corpus(400, seed=0)
    start = write_tiny_model(folder / "start", texts, hidden=64, heads=4)
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    print("pre-training a tiny base on 400 film reviews")
    recipe = {
        "algorithm": {"type": "sft"},
        "model": {"path": str(start)},
        "adapter": None,
        "data": {"path": str(corpus)},
        "train": {"steps": 40, "batch_size": 16, "learning_rate": 5e-3},
        "output": str(folder / "base"),
    }
    return accord.train(recipe, quiet=True).model


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example/session"))
