"""Whole recipes that start from a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import accord
from accord.cli import main
from accord.config import ModelConfig
from accord.recipes.generate import GenerateOptions
from model.test_gguf import write_gguf
from recipes.tiny_runs import completions, run, write_rows


@pytest.fixture(scope="module")
def file(model_folder, tmp_path_factory) -> Path:
    """The tiny Llama as one file, its matrices in eight bits."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(model_folder("llama"), path, "Q8_0")
    return path


def plain_loss(model: Any, folder: Path, rows: list[dict[str, Any]]) -> float:
    """Mean loss of the completions' tokens and their EOS, by plain libraries, one row after the other."""
    tokenizer, losses = AutoTokenizer.from_pretrained(folder), []
    for row in rows:
        start = len(tokenizer(row["prompt"]).input_ids)
        ids = torch.tensor([*tokenizer(row["prompt"] + row["completion"]).input_ids, tokenizer.eos_token_id])
        with torch.no_grad():
            logprobs = model.eval()(ids[None]).logits[0, start - 1 : -1].log_softmax(-1)
        losses.append(-logprobs.gather(-1, ids[start:, None]).flatten())
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_sft_learns_from_the_file_on_and_saves_what_plain_libraries_load(full, file, tmp_path: Path) -> None:
    over: dict[str, Any] = {
        "data": {"eval_path": write_rows(tmp_path / "held_out.jsonl", completions(3))},
        "train": {"batch_size": 12, "learning_rate": 0.01},
    }
    done = run("sft", file, tmp_path, over | ({"adapter": None} if full else {}))
    base = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    assert done.metrics[0]["sft/loss"] == pytest.approx(plain_loss(base, done.model, completions()), rel=1e-5)
    assert done.metrics[-1]["sft/loss"] < done.metrics[0]["sft/loss"] - 0.05
    if full:
        learnt = AutoModelForCausalLM.from_pretrained(done.model)
        assert (done.model / "config.json").is_file() and not (done.model / "adapter_config.json").exists()
    else:
        assert Path(peft.PeftConfig.from_pretrained(str(done.model)).base_model_name_or_path).samefile(file)
        learnt = peft.PeftModel.from_pretrained(base, str(done.model))
    expected = plain_loss(learnt, done.model, completions(3))
    assert done.metrics[-1]["eval/loss"] == pytest.approx(expected, rel=1e-5)
    on = run("sft", done.model, tmp_path / "on", over | {"train": {"steps": 1, "batch_size": 12}})
    assert on.metrics[0]["sft/loss"] == pytest.approx(plain_loss(learnt, done.model, completions()), rel=1e-5)
    (written,) = accord.generate(
        ModelConfig(path=str(done.model)), ["the film was"], GenerateOptions(max_new_tokens=4, temperature=0)
    )
    with torch.no_grad():
        first = learnt(torch.tensor([written.prompt_ids])).logits[0, -1].argmax()
    assert written.response_ids[0] == int(first)


def test_the_command_line_takes_the_file(file, tmp_path: Path, monkeypatch, capsys) -> None:
    words = ["sft", "--model.path", str(file), "--data.path", write_rows(tmp_path / "rows.jsonl", completions())]
    words += ["--output", str(tmp_path / "run"), "--train.steps", "1"]
    with monkeypatch.context() as patch:
        patch.setattr("accord.model.loading.load_weights", lambda *_, **__: pytest.fail("weights were read"))
        assert main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"# model: {file}" in out and "12 of 12 rows (completion)" in out
    assert "is a GGUF file, whose shape the forecast does not read" in out
    assert not (tmp_path / "run").exists()
    assert main([*words, "--quiet"]) == 0
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").is_file()
    wrong = ["--model.path", str(file.with_name("tini.gguf")), "--output", str(tmp_path / "other")]
    assert main([*words, "--dry-run", *wrong]) != 0
    assert "did you mean" in capsys.readouterr().err
