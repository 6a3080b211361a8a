"""Damaged adapters and models: what is wrong with which file, and never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from accord.config import LoraConfig, ModelConfig
from accord.errors import ModelError
from accord.model.adapter_files import saved_config, saved_tensors
from accord.model.critic import read_value_head
from accord.model.loading import locate
from accord.model.merging import merge
from accord.model.roles import Roles

CPU = torch.device("cpu")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def cut(folder: Path, name: str, size: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:size])


def told(folder: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "config cut": (lambda folder: cut(folder, CONFIG, 50), rf"{CONFIG} cannot be read .*again"),
    "config no mapping": (lambda folder: (folder / CONFIG).write_text("[]"), rf"{CONFIG} does not say which kind"),
    "no kind": (lambda folder: told(folder, lambda c: c.pop("peft_type")), rf"{CONFIG} does not say which kind"),
    "unknown kind": (lambda folder: told(folder, lambda c: c.update(peft_type="NEW")), "NEW adapter"),
    "odd value": (lambda folder: told(folder, lambda c: c.update(r=0)), "does not fit its base|cannot be read|adapter"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), rf"but not its weights: there is no {WEIGHTS}; .*again"),
    "weights cut": (lambda folder: cut(folder, WEIGHTS, 500), rf"{WEIGHTS} cannot be read .*again"),
    "weights empty": (lambda folder: cut(folder, WEIGHTS, 0), rf"{WEIGHTS} cannot be read .*again"),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("use", ["learns", "folded", "merged"])
def test_a_damaged_adapter_is_named(what, use, policy_adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(policy_adapter, tmp_path / "adapter"))
    damage, message = DAMAGE[what]
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        if use == "merged":
            merge(folder, tmp_path / "merged", torch.float32)
        else:
            Roles(ModelConfig(path=str(folder)), LoraConfig(r=4) if use == "learns" else None, CPU)
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("other", ["qwen3", "gpt2", "shallow"])
@pytest.mark.parametrize("use", ["learns", "merged"])
def test_an_adapter_of_another_base_is_told(
    use, other, policy_adapter: Path, model_folder, make_roles, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(policy_adapter, tmp_path / "adapter"))
    if other == "shallow":
        base = tmp_path / other
        model = make_roles(model_folder("llama")).model
        model.model.layers = model.model.layers[:1]
        model.config.num_hidden_layers = 1
        model.save_pretrained(base)
        make_roles(model_folder("llama")).tokenizer.save_pretrained(base)
    else:
        base = model_folder(other)
    told(folder, lambda config: config.update(base_model_name_or_path=str(base)))
    with pytest.raises(ModelError, match=r"does not fit its base|gate_proj|not found|no module") as caught:
        if use == "merged":
            merge(folder, tmp_path / "merged", torch.float32)
        else:
            Roles(ModelConfig(path=str(folder)), LoraConfig(r=4), CPU)
    assert str(folder) in str(caught.value) and not (tmp_path / "merged").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("size", [0, 300])
def test_a_damaged_base_is_named(name, size, model_folder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder("llama"), tmp_path / "base"))
    cut(folder, name, size)
    with pytest.raises(ModelError, match="base"):
        Roles(ModelConfig(path=str(folder)), LoraConfig(r=4), CPU)


def test_a_reward_adapter_without_its_head_does_not_go_on(
    reward_adapter: Path, policy_adapter: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(policy_adapter, tmp_path / "adapter"))
    told(folder, lambda config: config.update(task_type="SEQ_CLS"))
    roles = Roles(ModelConfig(path=str(folder)), LoraConfig(r=4), CPU)
    with pytest.raises(ModelError, match=rf"{WEIGHTS} holds no weights of its head \(score\)"):
        roles.add_scorer()
    assert saved_config(reward_adapter).r == 3
    assert any(key.endswith("score.weight") for key in saved_tensors(reward_adapter))


def test_a_damaged_value_head_is_named(tmp_path: Path) -> None:
    (tmp_path / "value_head.safetensors").write_bytes(b"12")
    with pytest.raises(ModelError, match=r"value_head.safetensors cannot be read .* leave critic.start out"):
        read_value_head(tmp_path / "value_head.safetensors")


def test_a_base_that_is_no_name_is_told(policy_adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(policy_adapter, tmp_path / "adapter"))
    told(folder, lambda config: config.update(base_model_name_or_path=7))
    with pytest.raises(ModelError, match="does not name its base model"):
        locate(str(folder))
