"""Weights by name: one file, shards, or made on the spot; read when they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from accord.errors import ModelError
from accord.model.loading import load_weights
from accord.model.tensors import open_tensors

CPU = torch.device("cpu")


@pytest.fixture
def sharded(model_folder, tokenizer, tmp_path: Path) -> Path:
    """The tiny Llama in several files."""
    model = AutoModelForCausalLM.from_pretrained(model_folder("llama"))
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    return tmp_path


def test_every_tensor_of_one_file_and_of_shards(model_folder, sharded: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(sharded).state_dict()
    for folder in (model_folder("llama"), sharded):
        tensors = open_tensors(str(folder))
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensor[...], expected[name]) for name, tensor in tensors.items())


def test_a_missing_file_is_named(sharded: Path, tmp_path: Path) -> None:
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match=rf"has no {lost.name}; its weights must be there as safetensors"):
        open_tensors(str(sharded))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        open_tensors(str(tmp_path / "empty"))


class Made:
    """Counts how often it is asked for."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.asked = tensor, 0

    def __getitem__(self, index: object) -> torch.Tensor:
        self.asked += 1
        return self.tensor[index]


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_tensors_from_elsewhere_take_the_place_of_the_files(quantize: str, model_folder, tmp_path: Path) -> None:
    """Each is asked for once, and the model is that of the files."""
    if quantize != "none":
        pytest.importorskip("bitsandbytes")
    folder = model_folder("gpt_neox")
    made = {name: Made(tensor[...]) for name, tensor in open_tensors(str(folder)).items()}
    model = load_weights(str(folder), torch.float32, CPU, quantize=quantize, tensors=made)
    same = load_weights(str(folder), torch.float32, CPU, quantize=quantize)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids, use_cache=False).logits, same(ids, use_cache=False).logits)
    assert {tensor.asked for tensor in made.values()} == {1}
    assert model.config.name_or_path == str(folder)


def test_missing_and_odd_tensors_are_errors(model_folder) -> None:
    folder = str(model_folder("gpt_neox"))
    tensors = dict(open_tensors(folder))
    some = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name}
    with pytest.raises(ModelError, match="does not hold all weights"):
        load_weights(folder, torch.float32, CPU, tensors=some)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_weights(folder, torch.float32, CPU, tensors=tensors | {"embed_out.weight": torch.zeros(3, 32)})
