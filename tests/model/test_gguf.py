"""GGUF files as bases: written here tensor by tensor, as llama.cpp's converter lays them out."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from accord.batch import TokenBatch
from accord.config import LoraConfig, ModelConfig, build
from accord.errors import ConfigError, ModelError
from accord.model.export import save_policy
from accord.model.forward import forward
from accord.model.loading import load_tokenizer, load_weights, locate, read_config
from accord.model.roles import Roles

gguf = pytest.importorskip("gguf")

CPU = torch.device("cpu")
HEADS = 4


def interleaved(weight: torch.Tensor) -> torch.Tensor:
    """llama.cpp keeps the two halves of each rotary pair next to each other, transformers half a head apart."""
    rows, columns = weight.shape
    return weight.view(HEADS, 2, rows // HEADS // 2, columns).transpose(1, 2).reshape(rows, columns)


def write_gguf(folder: Path, file: Path, kind: str) -> None:
    """The tiny Llama and its tokenizer as one GGUF file; matrices in `kind`, norms in float32."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([gguf.TokenType.CONTROL if n in special else gguf.TokenType.NORMAL for _, n in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in _merges(tokenizer)])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = interleaved(tensor)
        array = tensor.numpy().astype(numpy.float32)
        place = names.get_name(name, try_suffixes=(".weight",))
        if kind == "Q8_0" and array.ndim == 2 and array.shape[1] % 32 == 0:
            quantised = gguf.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(place, quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(place, array.astype(numpy.float16) if kind == "F16" and array.ndim == 2 else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _merges(tokenizer) -> list[list[str]]:
    import json

    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


@pytest.fixture(scope="module")
def files(model_folder, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    for kind in ("F32", "F16", "Q8_0"):
        write_gguf(model_folder("llama"), folder / f"{kind}.gguf", kind)
    return {kind: folder / f"{kind}.gguf" for kind in ("F32", "F16", "Q8_0")}


def logprobs(roles: Roles, batch: TokenBatch) -> torch.Tensor:
    with torch.no_grad(), roles.use("policy") as role:
        return forward(role, batch).logprobs_T


@pytest.mark.parametrize(("kind", "near"), [("F32", 1e-6), ("F16", 2e-3), ("Q8_0", 1e-2)])
def test_weights_are_those_of_the_file_within_its_type(kind: str, near: float, files, model_folder) -> None:
    model = load_weights(str(files[kind]), torch.float32, CPU)
    wanted = AutoModelForCausalLM.from_pretrained(model_folder("llama")).state_dict()
    assert model.state_dict().keys() == wanted.keys()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert float((tensor - wanted[name]).abs().max()) <= near * float(wanted[name].abs().max()), name
    different = sum(not torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    assert (different == 0) == (kind == "F32")


def test_a_file_is_a_base_that_learns_and_is_saved(files, model_folder, batch, ids, shake, tmp_path: Path) -> None:
    direct = Roles(ModelConfig(path=str(model_folder("llama"))), None, CPU)
    direct.add_policy()
    full = Roles(ModelConfig(path=str(files["F32"].parent), gguf_file="F32.gguf"), None, CPU)
    full.add_policy()
    torch.testing.assert_close(logprobs(full, batch), logprobs(direct, batch), atol=1e-5, rtol=1e-5)
    save_policy(full, tmp_path / "full")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "full")  # an ordinary model
    torch.testing.assert_close(again.state_dict()["model.norm.weight"], full.model.state_dict()["model.norm.weight"])

    adapted = Roles(ModelConfig(path=str(files["Q8_0"])), LoraConfig(r=4), CPU)
    adapted.add_policy()
    shake(adapted.trainable("policy").values())
    save_policy(adapted, tmp_path / "adapter")
    found = locate(str(tmp_path / "adapter"))
    assert Path(found.base).samefile(files["Q8_0"])
    next_run = Roles(ModelConfig(path=str(tmp_path / "adapter")), LoraConfig(r=4), CPU)
    next_run.add_policy()
    assert torch.equal(logprobs(next_run, batch), logprobs(adapted, batch))


def test_its_tokenizer_is_read_from_it(files, tokenizer) -> None:
    path = str(files["F16"])
    read = load_tokenizer(ModelConfig(path=path), locate(path))
    text = "the film was good\n and odd"
    assert read(text, add_special_tokens=False)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (read.eos_token, read.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)
    assert read_config(path).num_hidden_layers == 2


def test_what_cannot_be_read_says_why(files, tmp_path: Path, monkeypatch) -> None:
    folder = files["F16"].parent
    with pytest.raises(ModelError, match=r"no GGUF file at .*/F61.gguf; did you mean .*/F16.gguf\?"):
        locate(str(folder / "F61.gguf"))
    with pytest.raises(ModelError, match=r"holds no model.*did you mean .*/F16.gguf\?"):
        locate(str(folder))
    assert locate("org/name/model.gguf").base == "org/name/model.gguf"
    (tmp_path / "broken.gguf").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot read the model"):
        read_config(str(tmp_path / "broken.gguf"))
    with pytest.raises(ConfigError, match=r"`gguf_file` names a \.gguf file"):
        build(ModelConfig, {"path": str(files["F16"]), "gguf_file": "F16.gguf"})
    monkeypatch.setattr("accord.model.loading.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs the package gguf: pip install 'accord\[gguf\]'"):
        locate(str(files["F16"]))
