"""Adapters by their names on the hub, of which only the cache is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from accord.config import ModelConfig
from accord.errors import ModelError
from accord.model.hub import fetch_adapter
from accord.model.loading import is_scorer, load_tokenizer, locate


def test_an_adapter_is_found_with_its_base_and_its_tokenizer(policy_adapter, reward_adapter, model_folder, hub_cache):
    name = hub_cache("someone/policy", policy_adapter)
    location = locate(name)
    assert location.base == str(model_folder("llama"))
    assert location.adapter is not None and location.adapter == fetch_adapter(name)
    assert {file.name for file in location.adapter.iterdir()} == {file.name for file in policy_adapter.iterdir()}
    chat = "{{ messages[0].content }}"
    (location.adapter / "chat_template.jinja").write_text(chat)
    assert load_tokenizer(ModelConfig(path=name), location).chat_template == chat, "the adapter's own"
    assert not is_scorer(location) and is_scorer(locate(hub_cache("someone/reward", reward_adapter)))


def test_its_base_may_be_a_name_too(policy_adapter, model_folder, hub_cache, tmp_path: Path):
    folder = Path(shutil.copytree(policy_adapter, tmp_path / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    base = hub_cache("someone/base", model_folder("llama"))
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    assert locate(hub_cache("someone/policy", folder)).base == base


def test_a_whole_model_and_a_name_that_nobody_knows_are_no_adapters(model_folder, hub_cache):
    name = hub_cache("someone/base", model_folder("llama"))
    assert fetch_adapter(name) is None and (locate(name).base, locate(name).adapter) == (name, None)
    assert fetch_adapter("accord-nobody/nothing") is None


def test_only_the_adapter_s_files_are_fetched(policy_adapter, hub_cache, monkeypatch):
    asked = {}

    def snapshot(name: str, **options) -> str:
        asked.update(options, name=name)
        return str(policy_adapter)

    monkeypatch.setattr("accord.model.hub.snapshot_download", snapshot)
    assert fetch_adapter(hub_cache("someone/policy", policy_adapter)) == policy_adapter
    assert asked.pop("name") == "someone/policy"
    there = [
        *("adapter_config.json", "adapter_model.safetensors", "conditioning.json", "tokenizer.json", "vocab.txt"),
        *(
            "chat_template.jinja",
            "tokenizer.model",
            "adapter_model.bin",
            "optimizer.pt",
            "model-00001-of-00002.safetensors",
        ),
        *("checkpoint-5/adapter_model.safetensors", "checkpoint-5/trainer_state.json"),
    ]
    assert list(filter_repo_objects(there, **asked)) == there[:7]


def test_an_adapter_that_cannot_be_had_whole_is_an_error(policy_adapter, hub_cache, tmp_path: Path, monkeypatch):
    folder = Path(shutil.copytree(policy_adapter, tmp_path / "adapter"))
    (folder / "adapter_model.safetensors").unlink()
    name = hub_cache("someone/half", folder)
    with pytest.raises(ModelError, match=r"someone/half on the hub has .* but there is no adapter_model\.safetensors"):
        locate(name)

    def fails(*_, **__) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("accord.model.hub.snapshot_download", fails)
    with pytest.raises(
        ModelError, match="someone/half cannot be fetched from the hub: ConnectionError: no route to host"
    ):
        locate(name)
