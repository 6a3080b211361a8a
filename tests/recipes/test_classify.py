"""`accord classify` from rows to a classifier that plain libraries, `accord merge` and rewards read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

import accord
from accord.cli import main
from accord.errors import ConfigError, DataError, ModelError
from recipes.test_adapters import ADAPTERS
from recipes.tiny_runs import classes, run, words, write_rows

METHODS = {
    "full": None,
    "lora": {"r": 4},
    **{k: ADAPTERS[k] for k in ("adalora", "ia3", "prompt", "prefix", "ptuning")},
}
"""One of each."""


def over(level: str, adapter: dict | None, folder: Path, rows=None, **sections) -> dict:
    rows = rows or (classes() if level == "sequence" else words())
    folder.mkdir(exist_ok=True, parents=True)
    base = {
        "adapter": adapter,
        "algorithm": {"level": level},
        "data": {"path": write_rows(folder / "rows.jsonl", rows)},
        "train": {"steps": 10, "batch_size": 12, "learning_rate": 0.003 if adapter is None else 0.02},
    }
    return {key: {**(base.get(key) or {}), **sections.get(key, {})} or base[key] for key in base} | {"adapter": adapter}


@pytest.mark.parametrize("level", ["sequence", "token"])
@pytest.mark.parametrize("of", ["llama_grouped", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_it_learns_and_plain_libraries_classify_as_it_did(method, of, level, model_folder, tmp_path: Path):
    """The loss of the saved model in plain libraries, on rows as their tokenizer reads them, is that of the next step."""
    base, adapter = model_folder(of), METHODS[method]
    done = run("classify", base, tmp_path, over(level, adapter, tmp_path))
    losses = [row["classify/loss"] for row in done.metrics]
    labels = ("GOOD", "ODD", "SLOW") if level == "sequence" else ("A", "B")
    assert losses[0] == pytest.approx(math.log(len(labels)), abs=1.5) and losses[-1] < losses[0]
    automatic = AutoModelForSequenceClassification if level == "sequence" else AutoModelForTokenClassification
    if adapter is None:
        model = automatic.from_pretrained(done.model).eval()
        assert tuple(model.config.id2label.values()) == labels
    else:
        plain = automatic.from_pretrained(base, num_labels=len(labels))
        model = peft.PeftModel.from_pretrained(plain, done.model).eval()
        assert json.loads((done.model / "accord_labels.json").read_text())["labels"] == list(labels)
    model.config.pad_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(done.model)
    logits, targets = [], []
    for row in classes() if level == "sequence" else words():
        text = row["text"] if level == "sequence" else " ".join(row["tokens"])
        ids = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        with torch.no_grad():
            out = model(input_ids=ids["input_ids"]).logits[0]
        if level == "sequence":
            logits.append(out)
            targets.append(labels.index(row["label"]))
            continue
        spans, end = ids["offset_mapping"][0].tolist(), -1
        for word, label in zip(row["tokens"], row["labels"], strict=True):
            end += 1 + len(word)
            last = max(t for t, (_, right) in enumerate(spans) if end - len(word) < right <= end)
            logits.append(out[-len(spans) :][last])
            targets.append(labels.index(label))
    after = float(torch.nn.functional.cross_entropy(torch.stack(logits), torch.tensor(targets)))
    again = run("classify", done.model, tmp_path / "on", over(level, adapter, tmp_path / "on")) if adapter else None
    if again is not None:  # goes on with the adapter and the head that were saved: the same loss, all rows in one batch
        dropout_free = again.metrics[0]["classify/loss"]
        assert dropout_free == pytest.approx(after, rel=1e-3)
    assert after < losses[0]


def test_held_out_rows_labels_of_the_recipe_and_notes(base, tmp_path: Path):
    rows = [{"text": row["text"], "label": i % 3} for i, row in enumerate(classes(18))]
    done = run(
        "classify",
        base,
        tmp_path,
        over(
            "sequence",
            {"r": 4},
            tmp_path,
            rows,
            data={"eval_fraction": 0.3},
            algorithm={"labels": [2, 1, 0, 7], "label_smoothing": 0.1},
        ),
    )
    assert {"eval/loss", "eval/accuracy"} <= done.metrics[-1].keys()
    assert json.loads((done.model / "accord_labels.json").read_text()) == {
        "level": "sequence",
        "labels": ["2", "1", "0", "7"],
    }
    parts = build_parts(
        base, tmp_path / "b", over("sequence", {"r": 4}, tmp_path / "b", rows, algorithm={"labels": [2, 1, 0, 7]})
    )
    assert parts.notes == ["no row to learn from has the label 7, so it is never learnt"]


def build_parts(base: Path, folder: Path, layer: dict):
    from accord.recipes import BUILDERS
    from recipes.tiny_runs import recipe

    return BUILDERS["classify"](recipe("classify", base, folder, layer))


def test_everything_is_checked_before_weights_are_loaded(base, model_folder, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("accord.model.roles.load_weights", lambda *_, **__: pytest.fail("weights were loaded"))
    held_out = write_rows(tmp_path / "held.jsonl", [{"text": "a", "label": "GOOD"}, {"text": "b", "label": "GOODD"}])
    with pytest.raises(DataError, match=r"held\.jsonl:2: `label` is 'GOODD', .* did you mean 'GOOD'\?"):
        run("classify", base, tmp_path / "a", over("sequence", {}, tmp_path / "a", data={"eval_path": held_out}))
    with pytest.raises(DataError, match=r"rows\.jsonl:3: `label` is 'SLOW'"):
        run(
            "classify",
            base,
            tmp_path / "b",
            over("sequence", {}, tmp_path / "b", algorithm={"labels": ["GOOD", "ODD"]}),
        )
    one = [{"text": "a", "label": "x"}] * 3
    with pytest.raises(DataError, match="have the label 'x', and a classifier tells two or more apart"):
        run("classify", base, tmp_path / "c", over("sequence", {}, tmp_path / "c", one))
    with pytest.raises(ModelError, match="is an encoder-decoder model"):
        run("classify", model_folder("t5"), tmp_path / "d", over("sequence", {}, tmp_path / "d"))
    with pytest.raises(DataError, match=r"set algorithm\.level: token"):
        run("classify", base, tmp_path / "e", over("sequence", {}, tmp_path / "e", words()))
    with pytest.raises(ConfigError, match=r"mamba|virtual tokens before packed sequences|not packed"):
        run("classify", model_folder("bloom"), tmp_path / "f", over("sequence", ADAPTERS["prefix"], tmp_path / "f"))


def test_a_whole_classifier_is_no_start(base, tmp_path: Path, monkeypatch):
    done = run("classify", base, tmp_path, over("sequence", None, tmp_path, train={"steps": 1}))
    monkeypatch.setattr("accord.model.roles.load_weights", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(ModelError, match="is a whole classifier, and training starts from a language model"):
        run("classify", done.model, tmp_path / "on", over("sequence", None, tmp_path / "on"))


def test_skipped_rows_and_any_micro_batches(base, tmp_path: Path):
    rows = [*words(), {"tokens": ["the"], "labels": ["A", "B"]}]
    metrics = []
    for tokens in (10, 1000):
        folder = tmp_path / str(tokens)
        layer = over("token", ADAPTERS["prefix"], folder, rows, data={"on_bad_row": "skip"})
        layer["train"] |= {"micro_batch_tokens": tokens, "steps": 4}
        metrics.append(run("classify", base, folder, layer).metrics)
    for one, other in zip(*metrics, strict=True):
        for name in ("classify/loss", "classify/accuracy", "optim/grad_norm", "tokens/trained"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)
    assert metrics[0][0]["tokens/trained"] == sum(len(row["labels"]) for row in words())


@pytest.mark.parametrize("method", ["full", "lora", "prefix", "prompt"])
def test_a_classifier_is_a_reward(method, base, tmp_path: Path):
    """`accord classify`, then GRPO towards one of its labels; the score is the probability in plain libraries."""
    adapter = METHODS[method]
    done = run("classify", base, tmp_path / "c", over("sequence", adapter, tmp_path / "c"))
    reward = {"classifier": {"model": str(done.model), "label": "ODD", "batch_size": 3}}
    grpo = run("grpo", base, tmp_path / "g", {"reward": reward})
    assert 0 < grpo.metrics[0]["env/reward_mean"] < 1
    if adapter is None:
        model = AutoModelForSequenceClassification.from_pretrained(done.model)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        model = peft.PeftModel.from_pretrained(model, done.model)
    model.eval().config.pad_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(done.model)
    from pyarrow import parquet

    table = parquet.read_table(sorted((tmp_path / "g" / "run" / "rollouts").glob("*.parquet"))[0]).to_pylist()
    assert len(table) == 4
    for row in table:
        text = row.get("response") or row["response_text"]
        with torch.no_grad():
            chance = model(torch.tensor([tokenizer(text)["input_ids"]])).logits.softmax(-1)[0, 1]
        assert row["score"] == pytest.approx(float(chance), abs=1e-4)
    with pytest.raises(ModelError, match=r"cannot be a reward model; use reward: \{classifier"):
        run("grpo", base, tmp_path / "h", {"reward": str(done.model)})


def test_merged_classifiers_have_names(base, tmp_path: Path):
    done = run("classify", base, tmp_path, over("sequence", {"r": 4}, tmp_path))
    accord.merge(done.model, tmp_path / "whole", torch.float32)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert model.config.label2id == {"GOOD": 0, "ODD": 1, "SLOW": 2}
    assert "a classifier of texts" in (tmp_path / "whole" / "README.md").read_text().lower()


def test_its_rehearsal_looks_at_the_labels_and_the_model(base, tmp_path: Path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", classes())
    words = ["classify", "--model.path", str(base), "--data.path", rows, "--output", str(tmp_path / "out"), "--dry-run"]
    assert main(words) == 0
    assert main([*words, "--algorithm.labels", "[a, b]"]) == 1
    assert "is none of the 2 labels to learn" in capsys.readouterr().err
    whole = run(
        "classify", base, tmp_path / "whole", over("sequence", None, tmp_path / "whole", train={"steps": 1})
    ).model
    assert main([*words, "--model.path", str(whole)]) == 1
    assert "is a whole classifier, and training starts from a language model" in capsys.readouterr().err
