"""Whole models on disk: a base's generation config does not stop what a run has learnt from being written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from accord.config import LoraConfig
from accord.model.export import save_policy
from accord.model.merging import merge

REFUSED = {
    "sampling": {"temperature": 0.9, "top_p": 0.6, "do_sample": False},
    "beams": {"early_stopping": True, "temperature": 0.9},
}
"""Generation configs that transformers reads and does not write."""


@pytest.fixture(params=REFUSED)
def base(request, model_folder, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    shutil.copytree(model_folder("llama"), folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [2, 7]} | REFUSED[request.param]))
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "refused")
    return folder


def check(folder: Path, base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    saved, own = GenerationConfig.from_pretrained(folder), GenerationConfig.from_pretrained(base)
    assert (saved.eos_token_id, saved.pad_token_id) == ([2, 7], own.pad_token_id)
    if own.early_stopping is None:
        assert (saved.do_sample, saved.temperature, saved.top_p) == (True, 0.9, 0.6)
    assert model(torch.tensor([[5, 6]])).logits.isfinite().all()


def test_a_policy_is_saved_whatever_its_base_says_of_sampling(base: Path, make_roles, tmp_path: Path) -> None:
    roles = make_roles(base)
    roles.add_policy()
    save_policy(roles, tmp_path / "model")
    check(tmp_path / "model", base)


def test_an_adapter_is_merged_whatever_its_base_says_of_sampling(base: Path, make_roles, tmp_path: Path) -> None:
    roles = make_roles(base, LoraConfig(r=2))
    roles.add_policy()
    save_policy(roles, tmp_path / "adapter")
    check(merge(tmp_path / "adapter", tmp_path / "model", torch.float32), base)


def test_what_is_accepted_is_saved_as_it_is(model_folder, make_roles, tmp_path: Path) -> None:
    roles = make_roles(model_folder("llama"))
    roles.add_policy()
    save_policy(roles, tmp_path / "model")
    before, after = (
        GenerationConfig.from_pretrained(folder).to_diff_dict()
        for folder in (model_folder("llama"), tmp_path / "model")
    )
    assert after == before and "do_sample" not in after
