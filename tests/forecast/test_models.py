"""Finding a model's shape without loading anything."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from accord.config import METHODS
from accord.errors import ModelError
from accord.forecast.models import find_model, parameters_of
from forecast.measured import policy_of


def test_a_folder_a_classifier_and_an_adapter(model_folder, tmp_path):
    folder = model_folder("llama")
    found = find_model(str(folder))
    assert (found.base, found.scorer, found.adapter) == (str(folder.resolve()), False, None)
    roles = policy_of(folder, METHODS["lora"](r=4), "auto")
    roles.adapters.save("policy", tmp_path / "adapter", task="SEQ_CLS", head={"score.weight": torch.zeros(1, 32)})
    saved = find_model(str(tmp_path / "adapter"))
    learnt = sum(weight.numel() for weight in roles.trainable("policy").values())
    assert saved.base == found.base and saved.shape is found.shape and saved.scorer
    assert saved.adapter_parameters == learnt + 32
    told = json.loads((folder / "config.json").read_text()) | {"architectures": ["LlamaForSequenceClassification"]}
    (tmp_path / "scorer").mkdir()
    (tmp_path / "scorer" / "config.json").write_text(json.dumps(told))
    assert find_model(str(tmp_path / "scorer")).scorer


def test_a_header_tells_how_many_numbers_a_file_has(tmp_path):
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert parameters_of(tmp_path / "x.safetensors") == 22
    assert parameters_of(tmp_path / "none.safetensors") == 0
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 16)
    with pytest.raises(ModelError, match="is not a safetensors file: its header would have"):
        parameters_of(tmp_path / "bad.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((9).to_bytes(8, "little") + b"{")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        parameters_of(tmp_path / "cut.safetensors")


def test_a_missing_folder_gets_the_nearest_name(tmp_path):
    (tmp_path / "smollm2").mkdir()
    with pytest.raises(ModelError, match=rf"no model at {tmp_path}/smollm; did you mean {tmp_path}/smollm2\?"):
        find_model(str(tmp_path / "smollm"))
    (tmp_path / "smollm2" / "inside").mkdir()
    (tmp_path / "smollm2" / "inside" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds no model: .*did you mean .*smollm2/inside\?"):
        find_model(str(tmp_path / "smollm2"))


def test_a_config_that_cannot_be_read_is_named(tmp_path):
    for content, message in (("{", "cannot be read"), ("[]", "a model's config is a mapping")):
        folder = tmp_path / str(len(content))
        folder.mkdir()
        (folder / "config.json").write_text(content)
        with pytest.raises(ModelError, match=rf"config.json.*{message}"):
            find_model(str(folder))
    with pytest.raises(ModelError, match="is a GGUF file"):
        find_model("model.gguf")


def test_a_hub_name_is_looked_up_in_the_cache_alone(tmp_path, monkeypatch):
    import huggingface_hub

    with pytest.raises(
        ModelError, match=r"some-one/some-model is not a folder here.*hf download some-one/some-model config.json"
    ):
        find_model("some-one/some-model")
    told = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(told | {"num_attention_heads": 2, "vocab_size": 10}))
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda name, file: str(tmp_path / file) if file == "config.json" else None,
    )
    assert find_model("some-one/other-model").shape.hidden == 8
