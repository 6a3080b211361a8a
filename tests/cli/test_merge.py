"""`accord merge`."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from accord.cli import main
from accord.errors import RunError
from accord.model.loading import load_weights
from accord.model.merging import merge
from recipes.tiny_runs import run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_merged_model_gives_the_adapters_logits(dtype, base, finished, tmp_path: Path, capsys):
    assert main(["merge", str(finished / "model"), str(tmp_path / "merged"), "--dtype", dtype]) == 0
    assert f"--model.path {tmp_path}/merged" in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == getattr(torch, dtype)
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged")("the film was", return_tensors="pt").input_ids
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(finished / "model"))
    with torch.no_grad():
        ours, theirs = merged.float().eval()(ids).logits, adapted.eval()(ids).logits
    tolerance = 1e-4 if dtype == "float32" else 0.1
    assert torch.allclose(ours, theirs, atol=tolerance * float(theirs.abs().max()))


def test_sums_are_rounded_once_and_the_base_is_never_wider_than_its_files(base, tmp_path: Path, monkeypatch):
    """Delta rounded to bfloat16 before it is added would be another number now and then."""
    half = AutoModelForCausalLM.from_pretrained(base).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "half")
    adapter = run("sft", tmp_path / "half", tmp_path / "run").model
    wrapped = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32), str(adapter)
    )
    layer = wrapped.base_model.model.model.layers[1].mlp.up_proj
    exact = layer.base_layer.weight + layer.get_delta_weight("default")
    types = []

    def load(*args, **kwargs):
        types.append(args[1])
        return load_weights(*args, **kwargs)

    monkeypatch.setattr("accord.model.merging.load_weights", load)
    merge(adapter, tmp_path / "merged", torch.bfloat16)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert types == [torch.bfloat16] and {weight.dtype for weight in merged.parameters()} == {torch.bfloat16}
    assert torch.equal(merged.model.layers[1].mlp.up_proj.weight, exact.to(torch.bfloat16))


def test_a_folder_that_is_not_empty_is_refused(finished, tmp_path: Path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["merge", str(finished / "model"), str(tmp_path)]) == 1
    assert f"{tmp_path} is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_refused(finished, tmp_path: Path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["merge", str(finished / "model"), str(tmp_path / "thesis.tex")]) == 1
    assert "thesis.tex" in capsys.readouterr().err


def test_what_is_not_an_adapter(base, tmp_path: Path, capsys):
    assert main(["merge", str(base), str(tmp_path / "merged")]) == 1
    assert str(base) in capsys.readouterr().err and not (tmp_path / "merged").exists()


def test_a_folder_that_cannot_be_made_is_known_before_anything_is_loaded(finished, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("accord.model.merging.load_weights", lambda *_, **__: pytest.fail("weights were loaded"))
    (tmp_path / "thesis.tex").write_text("mine")
    below = tmp_path / "thesis.tex" / "merged"
    assert main(["merge", str(finished / "model"), str(below)]) == 2
    assert f"OUTPUT {below} cannot be written" in capsys.readouterr().err
    assert main(["export", str(finished / "model"), "--merge", str(below)]) == 2
    assert f"--merge {below} cannot be written" in capsys.readouterr().err


def test_a_disk_that_fills_up_is_said(finished, tmp_path: Path, capsys):
    """safetensors raises an error of its own, which is no OSError; here for want of a folder that files can be made in."""
    with pytest.raises(RunError, match=r"could not be written to /proc.*is as it was"):
        merge(finished / "model", Path("/proc"), torch.float32)


def test_it_says_what_takes_the_model(base, tmp_path: Path, capsys):
    reward = run("reward", base, tmp_path / "a reward").model
    assert main(["merge", str(reward), str(tmp_path / "a reward" / "merged")]) == 0
    assert f"use it: --reward '{tmp_path}/a reward/merged'" in capsys.readouterr().out
    classifier = run("classify", base, tmp_path / "classify").model
    assert main(["merge", str(classifier), str(tmp_path / "classes")]) == 0
    assert f"use it: see {tmp_path}/classes/README.md" in capsys.readouterr().out
