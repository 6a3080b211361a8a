"""`accord sft`: every format, adapter and full, from a base and from an adapter."""

from __future__ import annotations

import json
import math
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.tiny_runs import completions, run, same_weights, saved_weights, timeless, write_rows

ROWS = {
    "text": [{"text": f"the film {i} was good and the end was odd"} for i in range(6)],
    "completion": completions(6),
    "messages": [
        {"messages": [{"role": "user", "content": f"film {i}?"}, {"role": "assistant", "content": "good, the end odd"}]}
        for i in range(6)
    ],
}


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("format", ROWS)
def test_each_format_leaves_a_complete_run_directory(format, full, base, tmp_path: Path):
    over = {"data": {"path": write_rows(tmp_path / "rows.jsonl", ROWS[format]), "max_tokens": 128}}
    over |= {"adapter": None} if full else {}
    if format == "messages":
        over["model"] = {"chat_template": "chatml"}
    done = run("sft", base, tmp_path, over)
    assert {path.name for path in done.path.iterdir() if path.name != ".lock"} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "report.html",
    }
    assert [path.name for path in sorted((done.path / "checkpoints").iterdir())] == ["step-000001", "step-000002"]
    for checkpoint in (done.path / "checkpoints").iterdir():
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        assert set(manifest["files"]) == {path.name for path in checkpoint.iterdir()} - {"manifest.json"}
    assert [row["iteration"] for row in done.metrics] == [1, 2]
    assert all(math.isfinite(value) for row in done.metrics for value in row.values())
    assert done.metrics[0]["sft/perplexity"] == pytest.approx(math.exp(done.metrics[0]["sft/loss"]), rel=1e-9)
    before = AutoModelForCausalLM.from_pretrained(base)
    reloaded = AutoModelForCausalLM.from_pretrained(base if not full else done.model)
    if not full:
        reloaded = peft.PeftModel.from_pretrained(reloaded, str(done.model))
    ids = AutoTokenizer.from_pretrained(done.model)("the film was", return_tensors="pt").input_ids
    with torch.no_grad():
        moved = (reloaded.eval()(ids).logits - before.eval()(ids).logits).abs().max()
    assert 1e-4 < float(moved) < 100
    assert (AutoTokenizer.from_pretrained(done.model).chat_template is not None) == (format == "messages")


def test_first_loss_is_that_of_plain_transformers(base, tmp_path: Path):
    """On text every token but the first, the end too, is learnt: one number anyone can check."""
    rows = ROWS["text"][:4]
    over = {"data": {"path": write_rows(tmp_path / "rows.jsonl", rows)}, "train": {"steps": 1}}
    loss = run("sft", base, tmp_path, over).metrics[0]["sft/loss"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([[*tokenizer(row["text"]).input_ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_goes_on_from_an_adapter(base, sft_adapter, tmp_path: Path):
    """The new adapter starts at the old one (its loss too), the old one is not touched, and names the same base."""
    before = saved_weights(sft_adapter)
    fresh = run("sft", base, tmp_path / "fresh", {"train": {"steps": 1}})
    on = run("sft", sft_adapter, tmp_path / "on", {"train": {"steps": 1}})
    assert on.metrics[0]["sft/loss"] < fresh.metrics[0]["sft/loss"] - 0.05
    assert all(torch.equal(before[key], value) for key, value in saved_weights(sft_adapter).items())
    assert not same_weights(sft_adapter, on.model)
    assert peft.PeftConfig.from_pretrained(str(on.model)).base_model_name_or_path == str(base)


def test_full_fine_tuning_from_an_adapter_folds_it_in(base, sft_adapter, tmp_path: Path):
    one = {"train": {"steps": 1}}
    adapter = run("sft", sft_adapter, tmp_path / "adapter", one)
    full = run("sft", sft_adapter, tmp_path / "full", one | {"adapter": None})
    assert full.metrics[0]["sft/loss"] == pytest.approx(adapter.metrics[0]["sft/loss"], rel=1e-5)
    assert (full.model / "config.json").is_file() and not (full.model / "adapter_config.json").exists()


def test_held_out_rows_are_evaluated_and_not_learnt(base, tmp_path: Path):
    over = {"data": {"eval_fraction": 0.25}, "train": {"steps": 3, "eval_every": 2}}
    rows = run("sft", base, tmp_path, over).metrics
    assert ["eval/loss" in row for row in rows] == [False, True, True]
    assert rows[-1]["eval/perplexity"] == pytest.approx(math.exp(rows[-1]["eval/loss"]))


def test_epochs_use_every_row_once(base, tmp_path: Path):
    over = {"train": {"steps": None, "epochs": 1, "batch_size": 5}}
    rows = run("sft", base, tmp_path, over).metrics
    assert len(rows) == 3  # 5 + 5 + 2 of 12
    assert sum(row["tokens/total"] for row in rows) == _tokens(base)


def _tokens(base: Path) -> int:
    tokenizer = AutoTokenizer.from_pretrained(base)
    return sum(len(tokenizer(row["prompt"] + row["completion"]).input_ids) + 1 for row in completions())


def test_same_seed_same_run_other_seed_other_run(base, tmp_path: Path):
    """Invariant 5, with dropout, whose draws must follow from the seed, too."""
    over = {"adapter": {"dropout": 0.2}}
    first, again = run("sft", base, tmp_path / "a", over), run("sft", base, tmp_path / "b", over)
    other = run("sft", base, tmp_path / "c", over | {"seed": 1})
    assert timeless(first.metrics) == timeless(again.metrics) and same_weights(first.model, again.model)
    assert timeless(first.metrics) != timeless(other.metrics) and not same_weights(first.model, other.model)
