"""From a path to a model: what is found, what is refused and why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from accord.config import ModelConfig
from accord.errors import ModelError
from accord.model.attention import SEGMENTS
from accord.model.loading import is_scorer, load_tokenizer, load_weights, locate, trunk_of, weight_type
from accord.model.reading import CAPS, FACTORS, read, way_of
from accord.ops import products

CPU = torch.device("cpu")
SLOW, FAST = frozenset({"float32"}), frozenset({"float32", "bfloat16", "float16"})


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def own_folder(model_folder, tmp_path) -> Path:
    """A copy of the tiny Llama that a test may spoil."""
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "own"))


def test_a_missing_path_names_the_nearest_folder(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"no model at .*/sfd/model; did you mean .*runs/sft\?"):
        locate(str(tmp_path / "runs" / "sfd" / "model"))
    with pytest.raises(ModelError, match=r"no model at .*: .*runs has no 'zzz'"):
        locate(str(tmp_path / "runs" / "zzz"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"no model at runs/sfd; did you mean runs/sft\?"):
        locate("runs/sfd")
    with pytest.raises(ModelError, match=r"no model at rums/sft/model; did you mean runs\?"):
        locate("rums/sft/model")
    with pytest.raises(ModelError, match="no model at word"):
        locate("word")


def test_a_folder_without_a_config_points_to_one_inside(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model: there is no config.json or adapter_config.json in it$"):
        locate(str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"did you mean .*/model\?"):
        locate(str(tmp_path))


def test_an_adapter_is_resolved_to_its_base(tmp_path: Path) -> None:
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "base")}))
    found = locate(str(tmp_path / "adapter"))
    assert (found.base, found.adapter) == (str(tmp_path / "base"), tmp_path / "adapter")
    config.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "../base"}))
    assert Path(locate(str(tmp_path / "adapter")).base).resolve() == (tmp_path / "base").resolve()
    config.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/name"}))
    assert locate(str(tmp_path / "adapter")).base == "org/name"
    config.write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelError, match="does not name its base model"):
        locate(str(tmp_path / "adapter"))


def test_a_hub_name_that_cannot_be_fetched_is_a_model_error() -> None:
    location = locate("accord-nobody/nothing")
    assert (location.base, location.adapter) == ("accord-nobody/nothing", None)
    with pytest.raises(ModelError, match="accord-nobody/nothing"):
        load_weights(location.base, torch.float32, CPU)
    with pytest.raises(ModelError, match="no tokenizer could be loaded from accord-nobody/nothing"):
        load_tokenizer(ModelConfig(path=location.base), location)


def test_dtype_rules(own_folder: Path, monkeypatch) -> None:
    location = locate(str(own_folder))
    auto = ModelConfig(path=str(own_folder))
    assert weight_type(auto, location, trained=False) == torch.float32
    AutoModelForCausalLM.from_pretrained(own_folder).to(torch.bfloat16).save_pretrained(own_folder)
    assert weight_type(auto, location, trained=False) == torch.bfloat16
    assert weight_type(auto, location, trained=True) == torch.float32
    for types, dtype in ((SLOW, torch.float32), (FAST, torch.bfloat16)):
        monkeypatch.setattr(products, "fast_types", lambda types=types: types)
        assert weight_type(auto, location, False, CPU) == dtype
        assert weight_type(auto, location, False, torch.device("meta")) == torch.bfloat16
        assert weight_type(ModelConfig(path=str(own_folder), dtype="bfloat16"), location, False, CPU) == torch.bfloat16
    asked = ModelConfig(path=str(own_folder), dtype="float16")
    assert {weight_type(asked, location, trained) for trained in (True, False)} == {torch.float16}
    for dtype in (torch.float32, torch.bfloat16):
        assert {p.dtype for p in load_weights(str(own_folder), dtype, CPU).parameters()} == {dtype}


def test_weights_are_those_of_the_file_and_attention_is_ours(model_folder) -> None:
    folder = model_folder("llama")
    model = load_weights(str(folder), torch.float32, CPU)
    stored = load_file(folder / "model.safetensors")
    assert set(stored) == set(model.state_dict())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in stored.items())
    assert model.config._attn_implementation == SEGMENTS
    assert trunk_of(model) is model.model
    with pytest.raises(ModelError, match="LlamaModel has no separate trunk"):
        trunk_of(model.model)


def test_a_tokenizer_always_has_a_pad_and_an_eos_token(own_folder: Path, tokenizer, tmp_path: Path) -> None:
    config, location = ModelConfig(path=str(own_folder)), locate(str(own_folder))
    assert load_tokenizer(config, location).pad_token == tokenizer.pad_token
    changed = AutoTokenizer.from_pretrained(own_folder)
    changed.pad_token = None
    changed.save_pretrained(own_folder)
    assert load_tokenizer(config, location).pad_token_id == tokenizer.eos_token_id
    changed.eos_token = None
    changed.save_pretrained(own_folder)
    with pytest.raises(ModelError, match="has no EOS token, so no response could end"):
        load_tokenizer(config, location)


def test_the_adapter_s_own_tokenizer_wins(policy_adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(policy_adapter, tmp_path / "adapter"))
    changed = AutoTokenizer.from_pretrained(folder)
    changed.chat_template = "{{ messages[0].content }}"
    changed.save_pretrained(folder)
    location = locate(str(folder))
    assert load_tokenizer(ModelConfig(path=str(folder)), location).chat_template == changed.chat_template
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(ModelConfig(path=str(folder)), location).chat_template is None


def test_a_classifier_needs_one_label(own_folder: Path, tokenizer) -> None:
    config = transformers.AutoConfig.from_pretrained(own_folder, num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(own_folder)
    with pytest.raises(ModelError, match="has 2 labels; a reward model has one"):
        load_weights(str(own_folder), torch.float32, CPU, scorer=True)


def test_weights_that_are_missing_are_never_made_up(own_folder: Path, reward_model: Path) -> None:
    with pytest.raises(ModelError, match=r"weights of a LlamaForCausalLM: 1 are missing, such as lm_head.weight"):
        load_weights(str(reward_model), torch.float32, CPU)
    edit_config(own_folder, num_labels=1, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    with pytest.raises(ModelError, match=r"weights of a LlamaForSequenceClassification: 1 are missing, such as score"):
        load_weights(str(own_folder), torch.float32, CPU, scorer=True)
    tensors = load_file(own_folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, own_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing, such as model.layers.1.mlp.up_proj.weight"):
        load_weights(str(own_folder), torch.float32, CPU)


def test_no_weights_at_all_and_pickles_are_refused(own_folder: Path) -> None:
    tensors = load_file(own_folder / "model.safetensors")
    (own_folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_weights(str(own_folder), torch.float32, CPU)
    torch.save(tensors, own_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_weights(str(own_folder), torch.float32, CPU)


@pytest.mark.parametrize(("key", "neutral"), [(key, 1.0) for key in FACTORS] + [(key, None) for key in CAPS])
def test_transforms_of_the_logits_are_refused(own_folder: Path, key: str, neutral: float | None) -> None:
    edit_config(own_folder, **{key: neutral})
    load_weights(str(own_folder), torch.float32, CPU)
    edit_config(own_folder, **{key: 30.0})
    with pytest.raises(ModelError, match=rf"its config sets {key} = 30\.0"):
        load_weights(str(own_folder), torch.float32, CPU)


@pytest.mark.parametrize(
    "config",
    [
        transformers.BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2),
        transformers.CodeGenConfig(vocab_size=32, n_embd=16, n_layer=1, n_head=4, rotary_dim=4),
        transformers.MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1),
        transformers.Lfm2Config(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            layer_types=["conv", "full_attention"],
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_models_that_would_mix_packed_sequences_are_read_in_rows(config, tmp_path: Path, batch) -> None:
    plain = AutoModelForCausalLM.from_config(config)
    plain.save_pretrained(tmp_path)
    trunk = trunk_of(load_weights(str(tmp_path), torch.float32, CPU)).eval()
    assert way_of(trunk) == "rows"
    batch = batch.with_streams(input_ids_T=batch.input_ids_T % 32)
    rows = batch.input_ids_T.split(batch.lengths_N.tolist())
    with torch.no_grad():
        alone = torch.cat([plain.eval().base_model(ids[None], use_cache=False).last_hidden_state[0] for ids in rows])
        torch.testing.assert_close(read(trunk, batch).all(), alone, atol=1e-5, rtol=1e-4)


def test_what_is_a_scorer(model_folder, policy_adapter: Path, reward_adapter: Path, reward_model: Path) -> None:
    paths = {model_folder("llama"): False, policy_adapter: False, reward_adapter: True, reward_model: True}
    assert {path: is_scorer(locate(str(path))) for path in paths} == paths


def test_a_base_that_was_moved_is_named(tmp_path: Path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "base2").mkdir()
    config = tmp_path / "adapter" / "adapter_config.json"
    for base in (str(tmp_path / "base"), "./nowhere/base", "a/b/c", "~/nowhere/base"):
        config.write_text(json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}))
        with pytest.raises(ModelError, match=f"base of the adapter {tmp_path}/adapter is gone: there is no {base}"):
            locate(str(tmp_path / "adapter"))
    config.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base"), "peft_type": "LORA"}))
    with pytest.raises(ModelError, match=f"did you mean {tmp_path}/base2"):
        locate(str(tmp_path / "adapter"))
    for base in ("gpt2", "some-one/some-model", str(tmp_path / "base2")):
        config.write_text(json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}))
        assert locate(str(tmp_path / "adapter")).base == base
