"""That it learns: each method on a task that a random model of 20,000 weights can solve in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.config import ModelConfig
from accord.recipes.generate import GenerateOptions, generate
from recipes.tiny_runs import run, write_rows

SEEDS = (0, 1, 2)


def good_or_odd() -> list[dict[str, str]]:
    """Chosen answers say `good` somewhere among filler, rejected ones `odd`; prompts and fillers differ."""
    fill = ["a cast", "the end", "slow", "was", "and", "film"]
    return [
        {"prompt": f"the film {i % 7}", "chosen": f" {a} good {b}", "rejected": f" {b} odd {a}"}
        for i, (a, b) in enumerate((a, b) for a in fill for b in fill)
    ]


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("seed", SEEDS)
def test_sft_memorises_a_sentence(seed, full, base, tmp_path: Path):
    rows = [{"prompt": "the film", "completion": " was good and slow"}] * 4
    over = {
        "data": {"path": write_rows(tmp_path / "rows.jsonl", rows)},
        "train": {"steps": 60, "learning_rate": 0.01 if full else 0.03, "checkpoint_every": 0},
        "seed": seed,
    }
    done = run("sft", base, tmp_path, over | ({"adapter": None} if full else {}))
    assert done.metrics[0]["sft/loss"] > 3.0
    # With LoRA the random output layer stays: its rows are so short that no hidden state makes it surer than 0.25 nats.
    assert done.metrics[-1]["sft/loss"] < (0.1 if full else 0.3)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("seed", SEEDS)
def test_reward_model_tells_good_from_bad_on_pairs_it_has_not_seen(seed, full, base, tmp_path: Path):
    over = {
        "data": {"path": write_rows(tmp_path / "rows.jsonl", good_or_odd()), "eval_fraction": 0.3},
        "train": {"steps": 60, "batch_size": 12, "learning_rate": 0.003 if full else 0.01, "checkpoint_every": 0},
        "seed": seed,
    }
    done = run("reward", base, tmp_path, over | ({"adapter": None} if full else {}))
    assert done.metrics[0]["reward/accuracy"] == 0.5
    assert done.metrics[-1]["eval/accuracy"] > 0.9


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("seed", SEEDS)
def test_process_reward_model_judges_steps_of_answers_it_has_not_seen(seed, full, base, tmp_path: Path):
    """A step is good if it says `good`, wherever it stands, whatever the steps before it were."""
    fill = ["a cast", "the end", "slow", "was", "and", "film"]
    rows = []
    for i in range(48):
        good = [(i >> k) % 2 == 0 for k in range(3)]
        steps = [f" {fill[(i + k) % 6]} {'good' if up else 'odd'} {fill[(i * k + 1) % 6]}" for k, up in enumerate(good)]
        rows.append({"prompt": f"the film {i % 7}", "completions": steps, "labels": good})
    over = {
        "data": {"path": write_rows(tmp_path / "rows.jsonl", rows), "eval_fraction": 0.25},
        "algorithm": {"level": "step"},
        "train": {"steps": 50, "batch_size": 12, "learning_rate": 0.01 if full else 0.02, "checkpoint_every": 0},
        "seed": seed,
    }
    done = run("reward", base, tmp_path, over | ({"adapter": None} if full else {}))
    assert done.metrics[0]["reward/accuracy"] == 0.5
    assert done.metrics[-1]["eval/accuracy"] > 0.9


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["kto", "bco"])
def test_thumbs_move_answers_to_prompts_that_it_has_not_seen(kind, seed, full, base, tmp_path: Path):
    """Answers with `good` are liked, those with `odd` disliked; prompts and fillers differ. Nearly all held-out rows end on
    the right side; the liked have become likelier than they were, the disliked less likely."""
    fill = ["a cast", "the end", "slow", "was", "and", "film"]
    rows = [
        {"prompt": f"the film {i % 7}", "completion": f" {a} {'good' if up else 'odd'} {b}", "label": up}
        for i, (a, b) in enumerate((a, b) for a in fill for b in fill)
        for up in (True, False)
    ]
    over = {
        "data": {"path": write_rows(tmp_path / "rows.jsonl", rows), "eval_fraction": 0.25},
        "algorithm": {"beta": 0.3},
        "train": {"steps": 40, "batch_size": 18, "learning_rate": 0.01 if full else 0.03, "checkpoint_every": 0},
        "seed": seed,
    }
    done = run(kind, base, tmp_path, over | ({"adapter": None} if full else {}))
    assert abs(done.metrics[0]["rewards/margins"]) < 1e-5
    assert done.metrics[-1]["eval/accuracy"] > 0.85
    assert done.metrics[-1]["eval/rewards/chosen"] > 1 > 0 > done.metrics[-1]["eval/rewards/rejected"]


CLASSIFIERS = {"full": None, "lora": {"r": 4}, "prefix": {"method": "prefix", "tokens": 8}}
RATES = {"full": 0.003, "lora": 0.02, "prefix": 0.1}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("level", ["sequence", "token"])
@pytest.mark.parametrize("method", CLASSIFIERS)
def test_it_classifies_texts_and_words_that_it_has_not_seen(method, level, seed, base, tmp_path: Path):
    """Three classes of texts, by their last word behind filler; of words, by which of these came before (mostly none)."""
    fill = ["a cast", "the end", "slow", "was", "and", "film"]
    rows = []
    for a, b in ((a, b) for a in fill for b in fill):
        for name in ("good", "odd", "fine"):
            words = [*a.split(), *b.split(), name] if level == "sequence" else [*a.split(), name, *b.split()]
            seen = [name if name in words[: place + 1] else "none" for place in range(len(words))]
            as_text = {"text": " ".join(words), "label": name}
            rows.append(as_text if level == "sequence" else {"tokens": words, "labels": seen})
    adapter = CLASSIFIERS[method]
    over = {
        "adapter": adapter,
        "algorithm": {"level": level},
        "data": {"path": write_rows(tmp_path / "rows.jsonl", rows), "eval_fraction": 0.25},
        "train": {"steps": 100, "batch_size": 24, "learning_rate": RATES[method], "checkpoint_every": 0},
        "seed": seed,
    }
    done = run("classify", base, tmp_path, over)
    assert done.metrics[-1]["eval/accuracy"] > (0.9 if level == "sequence" else 0.75)


REWARD = """
def letters(prompts, responses):
    return [sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in responses]
"""


METHODS = {
    "ppo": {},
    "rloo": {"kl": {"coef": 0.001}},
    "grpo": {"kl": {"coef": 0.001}},
    "dapo": {"type": "grpo", "aggregate": "token", "clip_high": 0.28, "kl": {"coef": 0.0}},
    "dr_grpo": {"type": "grpo", "scale": "none", "aggregate": "constant", "kl": {"coef": 0.0}},
    "gspo": {"type": "grpo", "ratio": "sequence", "clip": 0.05, "kl": {"coef": 0.0}},
    "cispo": {"type": "grpo", "surrogate": "cispo", "aggregate": "token", "kl": {"coef": 0.0}},
    "reinforce": {"kl": {"coef": 0.001}},
    "ppo_dual_clip": {"type": "ppo", "dual_clip": 3.0, "kl_stop": 0.5, "correction": "truncate"},
    "remax": {"kl": {"coef": 0.001}},
    "rejection": {},
    "rejection_fraction": {"type": "rejection", "keep": "fraction", "fraction": 0.25},
    "online_dpo": {"beta": 0.05},
    "online_ipo": {"type": "online_dpo", "loss": "ipo", "beta": 0.02},
    "reinforce_baseline": {"type": "reinforce", "baseline": True, "kl": {"coef": 0.001}},
}
"""Name of a method or variant -> its `algorithm` section."""
SLOWER = ("remax", "online_ipo")
"""Methods that are not as far after so few iterations, for some seeds."""
OWN = ("rejection", "online_dpo")
"""Methods that are no policy gradients, and so have no KL of their own."""


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", METHODS)
def test_it_makes_the_rewarded_likelier(method, seed, full, base, tmp_path: Path):
    """The share of plain letters: a third in a random model's responses, most of them after a few iterations."""
    kind = METHODS[method].get("type", method)
    (tmp_path / "letters.py").write_text(REWARD)
    over = {
        "reward": f"{tmp_path}/letters.py:letters",
        "rollout": {
            "max_new_tokens": 6,
            "samples": 1 if method in ("ppo", "ppo_dual_clip", "reinforce", "remax") else 4,
        },
        "algorithm": ({} if kind in OWN else {"kl": {"coef": 0.001, "target": None}})
        | {"epochs": 2, "minibatches": 2}
        | METHODS[method],
        "train": {
            "iterations": 22,
            "batch_size": 40,
            "learning_rate": 0.01 if full else 0.05,
            "checkpoint_every": 0,
            "rollouts_every": 0,
        },
        "seed": seed,
    }
    rows = run(kind, base, tmp_path, over | ({"adapter": None} if full else {})).metrics
    scores = [row["env/reward_mean"] for row in rows]
    reached = max(sum(scores[n : n + 3]) / 3 for n in range(len(scores) - 2))
    assert scores[0] < 0.45 and reached > (0.55 if method in SLOWER else 0.65), scores
    assert rows[0]["objective/kl"] == 0.0 < rows[-1]["objective/kl"]


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("seed", SEEDS)
def test_ptx_keeps_a_text_while_the_rewarded_becomes_likelier(seed, full, base, tmp_path: Path):
    """Both at once: the letters of the test above, and the sentence of the first one, to prompts that are no task's."""
    (tmp_path / "letters.py").write_text(REWARD)
    rows = [{"prompt": "a cast", "completion": " was good and slow"}] * 4
    over = {
        "reward": f"{tmp_path}/letters.py:letters",
        "rollout": {"max_new_tokens": 6},
        "algorithm": {"kl": {"coef": 0.001, "target": None}, "epochs": 2, "minibatches": 2},
        "ptx": {"data": {"path": write_rows(tmp_path / "text.jsonl", rows)}, "coef": 0.5, "batch_size": 4},
        "train": {
            "iterations": 22,
            "batch_size": 40,
            "learning_rate": 0.01 if full else 0.05,
            "checkpoint_every": 0,
            "rollouts_every": 0,
        },
        "seed": seed,
    }
    found = run("ppo", base, tmp_path, over | ({"adapter": None} if full else {})).metrics
    scores, losses = [row["env/reward_mean"] for row in found], [row["ptx/loss"] for row in found]
    assert scores[0] < 0.45 and sum(scores[-3:]) / 3 > 0.65, scores
    assert losses[0] > 3.0 and losses[-1] < 1.0, losses


def written(model: Path, prompts: list[str], **options: str) -> list[str]:
    """The likeliest answer to each prompt."""
    config = GenerateOptions(max_new_tokens=8, temperature=0, **options)
    return [rollout.response_text for rollout in generate(ModelConfig(path=str(model)), prompts, config)]


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("seed", SEEDS)
def test_csft_writes_what_is_asked_for(seed, full, base, tmp_path: Path):
    """Good and bad answers to the same prompts: only the label tells which is wanted."""
    rows = [
        {"prompt": f"the film {i}", "completion": end, "score": score}
        for i in range(4)
        for end, score in ((" was good", 1.0), (" was odd", -1.0))
    ]
    over = {
        "data": {"path": write_rows(tmp_path / "rows.jsonl", rows)},
        "adapter": None if full else {"r": 16, "alpha": 32},
        "train": {"steps": 120, "batch_size": 8, "learning_rate": 0.005 if full else 0.02, "checkpoint_every": 0},
        "seed": seed,
    }
    model, prompts = run("csft", base, tmp_path, over).model, [f"the film {i}" for i in range(4)]
    assert written(model, prompts, label="good") == [" was good"] * 4
    assert written(model, prompts, label="bad") == [" was odd"] * 4


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("seed", SEEDS)
def test_distill_makes_the_student_write_what_its_teacher_writes(seed, full, base, teacher, tmp_path: Path):
    """No answer is given and none is scored: all it learns from is the teacher's distribution on its own responses."""
    over = {
        "teacher": str(teacher),
        "reward": [],
        "rollout": {"max_new_tokens": 8},
        "algorithm": {"epochs": 2, "minibatches": 2, "beta": 0.5},
        "train": {"iterations": 15, "batch_size": 24, "learning_rate": 0.01 if full else 0.03, "checkpoint_every": 0},
        "seed": seed,
    }
    done = run("distill", base, tmp_path, over | ({"adapter": None} if full else {}))
    assert done.metrics[-1]["distill/divergence"] < 0.35 * done.metrics[0]["distill/divergence"]


PREFERENCES = {
    "dpo": {},
    "dpo_cdpo": {"label_smoothing": 0.1},
    "dpo_free": {},
    "dpo_rpo": {"sft_coef": 0.5},
    **{f"dpo_{loss}": {"loss": loss} for loss in ("hinge", "robust", "exo", "nca", "aot", "aot_unpaired", "apo_zero")},
    "dpo_ipo": {"loss": "ipo"},
    "dpo_sppo": {"loss": "sppo"},
    "dpo_apo_down": {"loss": "apo_down"},
    "dpo_discopop": {"loss": "discopop", "beta": 1.0},
    **{f"dpo_{kind}": {"f_divergence": kind} for kind in ("forward_kl", "js", "alpha")},
    "dpo_normalized": {"length_normalize": True, "beta": 1.0},
    "orpo": {"beta": 1.0},
    "simpo": {},
    "simpo_alpha": {"type": "simpo", "alpha": 0.25},
    "cpo": {},
    "cpo_ipo": {"type": "cpo", "loss": "ipo"},
}
"""Name of a method or variant -> its `algorithm` section."""


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", PREFERENCES)
def test_it_prefers_what_people_prefer_on_pairs_it_has_not_seen(method, seed, full, base, tmp_path: Path):
    """The pairs of the reward model's test; a random model tells them apart no better than a coin."""
    over = {
        "data": {"path": write_rows(tmp_path / "rows.jsonl", good_or_odd()), "eval_fraction": 0.3},
        "algorithm": {"type": method.partition("_")[0]} | PREFERENCES[method],
        "train": {"steps": 25, "batch_size": 8, "learning_rate": 0.003 if full else 0.01, "checkpoint_every": 0},
        "seed": seed,
    }
    over |= {"adapter": None} if full else {}
    over |= {"reference": None} if method == "dpo_free" else {}
    done = run(method.partition("_")[0], base, tmp_path, over)
    assert done.metrics[-1]["eval/rewards/accuracies"] > 0.8
    assert done.metrics[-1]["eval/rewards/margins"] > 0
