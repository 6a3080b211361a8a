"""`accord reward`: pairs in, a sequence classifier out."""

from __future__ import annotations

import math
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from accord.algorithms import RewardModelling
from accord.recipes.reward import spread
from recipes.tiny_runs import pairs, run, write_rows


def test_margin_centring_and_evaluation(base, tmp_path: Path):
    rows = [row | {"margin": 0.5 * (i % 3)} for i, row in enumerate(pairs())]
    over = {
        "data": {"path": write_rows(tmp_path / "margin.jsonl", rows), "eval_fraction": 0.25},
        "algorithm": {"centre_coef": 0.1},
        "train": {"steps": 3},
    }
    done = run("reward", base, tmp_path, over)
    first, last = done.metrics[0], done.metrics[-1]
    assert first["reward/accuracy"] == 0.5 and first["reward/margin"] == 0.0  # the head starts at 0: indifference
    assert {"eval/loss", "eval/accuracy", "eval/margin", "eval/chosen_mean", "eval/rejected_mean"} <= last.keys()
    assert "eval/perplexity" not in last and "reward/perplexity" not in last
    assert last["reward/margin"] > 0
    plain = run("reward", base, tmp_path / "plain", {"train": {"steps": 1}})
    assert plain.metrics[0]["reward/loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert first["reward/loss"] > math.log(2) + 0.01  # the margins are asked for


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_loads_in_plain_libraries_with_the_scores_it_learnt(full, base, reward_adapter, reward_classifier):
    """The chosen answers score higher, in transformers and peft alone."""
    folder = reward_classifier if full else reward_adapter
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if full:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model = peft.PeftModel.from_pretrained(model, str(folder))
    model.config.pad_token_id = tokenizer.pad_token_id

    def score(text: str) -> float:
        ids = torch.tensor([[*tokenizer(text).input_ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            return float(model.eval()(ids).logits[0, 0])

    better = [score(row["prompt"] + row["chosen"]) - score(row["prompt"] + row["rejected"]) for row in pairs()]
    assert min(better) > 0
    assert (folder.parent / "report.html").is_file() and (folder.parent / "environment.json").is_file()


def test_rows_are_spread_evenly():
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 4) == [0, 1, 2] and spread(range(4), 4) == [0, 1, 2, 3]
    assert len(set(spread(range(10_000), 2048))) == 2048 and spread(range(10_000), 2048)[-1] > 9_990


def test_normalisation_measures_rows_of_the_whole_file(base, tmp_path: Path, monkeypatch):
    """A file that is sorted by length: its beginning alone would tell the scores of short answers."""
    monkeypatch.setattr("accord.recipes.reward.MEASURED", 4)
    asked: list[list[int]] = []
    prepare = RewardModelling.prepare

    def watch(self, items, scorer):
        asked.append([len(item.chosen) for item in items])
        return prepare(self, items, scorer)

    monkeypatch.setattr(RewardModelling, "prepare", watch)
    rows = [{"prompt": "the film", "chosen": " good" * (i + 1), "rejected": " odd"} for i in range(8)]
    over = {"data": {"path": write_rows(tmp_path / "sorted.jsonl", rows)}, "algorithm": {"normalize": "all"}}
    run("reward", base, tmp_path, over)
    shortest = min(asked[-1])
    assert [length - shortest for length in asked[-1]] == [0, 2, 4, 6]
