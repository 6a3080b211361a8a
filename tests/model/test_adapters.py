"""Adapters on one base: adding, switching, saving, folding in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from accord.config import LoraConfig
from accord.errors import ConfigError, ModelError
from accord.model.adapters import AdapterSet
from accord.model.export import save_policy
from accord.model.merging import merge
from accord.model.methods import peft_config
from model.kinds import KINDS, VIRTUAL, plain_policy


def lora_config(config: LoraConfig) -> peft.PeftConfig:
    return peft_config(config, "no tokenizer is read")


IDS = torch.tensor([[5, 80, 9, 200, 31, 7]])


@pytest.fixture
def adapters(model_folder, plain) -> AdapterSet:
    """Two adapters, `one` and `two`, with different weights, on a tiny Llama."""
    folder = model_folder("llama")
    adapters = AdapterSet(plain(folder).requires_grad_(False), str(folder))
    for name in ("one", "two"):
        adapters.add(name, lora_config(LoraConfig(r=2, alpha=4)))
    return adapters


def logits(adapters: AdapterSet) -> torch.Tensor:
    with torch.no_grad():
        return adapters.model(IDS).logits


def test_lora_config_says_what_the_recipe_says() -> None:
    config = lora_config(LoraConfig(r=5, alpha=7.5, dropout=0.1, targets=("q_proj",)))
    assert (config.r, config.lora_alpha, config.lora_dropout, config.target_modules) == (5, 7.5, 0.1, {"q_proj"})
    assert lora_config(LoraConfig()).target_modules == "all-linear"


def test_all_linear_layers_but_the_output_layer_are_adapted(adapters: AdapterSet) -> None:
    names = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in adapters.parameters("one")}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(adapters.parameters("one")) == 2 * 2 * 7
    assert adapters.parameters("nothing") == {}
    assert not set(adapters.parameters("one")) & set(adapters.parameters("two"))


def test_one_adapter_is_active_at_a_time_and_none_outside(adapters: AdapterSet, plain, model_folder, shake) -> None:
    bare = plain(model_folder("llama"))(IDS).logits
    shake(adapters.parameters("one").values(), seed=1)
    shake(adapters.parameters("two").values(), seed=2)
    seen = {}
    assert torch.equal(logits(adapters), bare)
    for name in ("one", "two", None, "one"):
        with adapters.active(name, trains=False):
            first = seen.setdefault(name, logits(adapters))
            assert torch.equal(logits(adapters), first)
        assert torch.equal(logits(adapters), bare)
    assert torch.equal(seen[None], bare)
    assert len({float(output.sum()) for output in seen.values()}) == 3


def test_leaving_restores_what_was_active_also_after_an_error(adapters: AdapterSet, shake) -> None:
    shake(adapters.parameters("one").values(), seed=1)
    shake(adapters.parameters("two").values(), seed=2)
    with adapters.active("one", trains=True):
        before = logits(adapters)
        for inner in ("two", None):
            with pytest.raises(KeyError), adapters.active(inner, trains=False):
                assert not torch.equal(logits(adapters), before)
                raise KeyError
            assert torch.equal(logits(adapters), before)
            assert all(parameter.requires_grad for parameter in adapters.parameters("one").values())
            assert not any(parameter.requires_grad for parameter in adapters.parameters("two").values())


@pytest.mark.parametrize("trains", [True, False])
def test_only_an_active_adapter_that_trains_takes_gradients(adapters: AdapterSet, trains: bool) -> None:
    with adapters.active("two", trains=trains):
        wants = [name for name, parameter in adapters.model.named_parameters() if parameter.requires_grad]
    assert len(wants) == (28 if trains else 0) and all(".two." in name for name in wants)
    assert not any(parameter.requires_grad for parameter in adapters.model.parameters())


def test_a_copy_has_the_same_weights_in_memory_of_its_own(adapters: AdapterSet, shake) -> None:
    shake(adapters.parameters("one").values())
    adapters.copy("one", "three")
    pairs = list(zip(adapters.parameters("one").values(), adapters.parameters("three").values(), strict=True))
    assert all(torch.equal(one, other) for one, other in pairs)
    with adapters.active("one", trains=False):
        original = logits(adapters)
    with adapters.active("three", trains=False):
        assert torch.equal(logits(adapters), original)
    shake(adapters.parameters("three").values())
    assert not any(torch.equal(one, other) for one, other in pairs)
    with adapters.active("one", trains=False):
        assert torch.equal(logits(adapters), original)


def test_what_is_saved_is_loaded_again_exactly(adapters: AdapterSet, plain, tmp_path: Path, shake) -> None:
    shake(adapters.parameters("two").values())
    adapters.save("two", tmp_path / "bare")
    head = torch.randn(1, 32)
    adapters.save("two", tmp_path / "headed", "SEQ_CLS", {"score.weight": head})
    with adapters.active("two", trains=False):
        wanted = logits(adapters)
    fresh = AdapterSet(plain(Path(adapters.base_path)), adapters.base_path)
    assert fresh.load("x", tmp_path / "bare") == {}
    loaded = fresh.load("y", tmp_path / "headed", ("score",))
    assert set(loaded) == {"score.weight"} and torch.equal(loaded["score.weight"], head)
    for name in ("x", "y"):
        with fresh.active(name, trains=False):
            assert torch.equal(logits(fresh), wanted)


def test_targets_that_do_not_exist_are_an_error(adapters: AdapterSet, plain, model_folder) -> None:
    folder = model_folder("llama")
    for other in (adapters, AdapterSet(plain(folder), str(folder))):
        with pytest.raises(ConfigError, match=r"adapter.targets: .*c_attn"):
            other.add("z", lora_config(LoraConfig(targets=("c_attn",))))


def test_adapters_that_do_not_fit_are_refused(adapters: AdapterSet, policy_adapter: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(policy_adapter, tmp_path / "broken"))
    tensors = load_file(broken / "adapter_model.safetensors")
    key = next(iter(tensors))
    save_file({k: v for k, v in tensors.items() if k != key}, broken / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"0 tensors have no place, 1 are missing"):
        adapters.load("p", broken)
    save_file(
        tensors | {key.replace("layers.0", "layers.9"): tensors[key].clone()}, broken / "adapter_model.safetensors"
    )
    with pytest.raises(ModelError, match=r"does not fit its base .*1 tensors have no place"):
        adapters.load("q", broken)
    (broken / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"there is no adapter_model.safetensors"):
        adapters.load("s", broken)
    peft.LoHaConfig(target_modules=["q_proj"], base_model_name_or_path="x").save_pretrained(tmp_path / "loha")
    with pytest.raises(ModelError, match="LOHA adapter; roles on a shared base take lora, adalora, ia3, prompt"):
        adapters.load("t", tmp_path / "loha")


def test_merge_equals_the_adapter(policy_adapter: Path, plain, tmp_path: Path) -> None:
    base = json.loads((policy_adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    wanted = peft.PeftModel.from_pretrained(plain(Path(base)), policy_adapter)(IDS).logits
    assert (wanted - plain(Path(base))(IDS).logits).abs().max() > 0.1
    folder = merge(policy_adapter, tmp_path / "merged", torch.float32)
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(folder)(IDS).logits, wanted, atol=1e-5, rtol=1e-5)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|endoftext|>"
    assert "accord" not in (folder / "config.json").read_text()
    whole = load_file(folder / "model.safetensors")
    half = load_file(merge(policy_adapter, tmp_path / "half", torch.bfloat16) / "model.safetensors")
    assert set(half) == set(whole)
    assert all(torch.equal(half[name], tensor.to(torch.bfloat16)) for name, tensor in whole.items()), "added in float32"


@pytest.mark.parametrize("of", ["llama_grouped", "gpt2"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in VIRTUAL])
def test_merge_equals_the_adapter_of_each_kind(
    kind, of, model_folder, make_roles, plain, shake, tmp_path: Path
) -> None:
    roles = make_roles(model_folder(of), KINDS[kind])
    roles.add_policy()
    shake(roles.trainable("policy").values(), 0.2)
    save_policy(roles, tmp_path / "adapter")
    wanted = plain_policy(tmp_path / "adapter", model_folder(of))(IDS).logits
    got = AutoModelForCausalLM.from_pretrained(merge(tmp_path / "adapter", tmp_path / "m", torch.float32))(IDS).logits
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)
    assert (got - plain(model_folder(of))(IDS).logits).abs().max() > 0.05


@pytest.mark.parametrize("kind", VIRTUAL)
def test_virtual_tokens_cannot_be_folded_in(kind, model_folder, make_roles, tmp_path: Path) -> None:
    roles = make_roles(model_folder("llama"), KINDS[kind])
    roles.add_policy()
    save_policy(roles, tmp_path / "adapter")
    with pytest.raises(
        ModelError, match=rf"is a {KINDS[kind].method} adapter: .* cannot be folded into them; use it as it is"
    ):
        merge(tmp_path / "adapter", tmp_path / "m", torch.float32)
    assert not (tmp_path / "m").exists()


def test_merge_of_a_reward_adapter_is_a_classifier(reward_adapter: Path, tmp_path: Path) -> None:
    base = json.loads((reward_adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).eval()
    wanted = peft.PeftModel.from_pretrained(classifier, reward_adapter)(IDS).logits
    merged = AutoModelForSequenceClassification.from_pretrained(merge(reward_adapter, tmp_path / "m", torch.float32))
    torch.testing.assert_close(merged(IDS).logits, wanted, atol=1e-5, rtol=1e-5)
    assert merged.config.num_labels == 1


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's, of the same
@pytest.mark.parametrize(
    ("of", "layer", "query", "other"),
    [
        ("gpt2", "lm_head", "c_attn", "transformer.wte"),
        ("gpt2", "wte", "c_attn", "lm_head"),
        ("t5", "shared", "q", "lm_head"),
    ],
)
def test_an_adapter_of_a_tied_weight_is_not_folded_in(
    of, layer, query, other, model_folder, make_roles, plain, shake, tmp_path: Path
) -> None:
    """Both layers would change, and the merged model would say something else altogether."""
    folder, adapter = model_folder(of), tmp_path / "adapter"
    automatic = AutoModelForSeq2SeqLM if of == "t5" else AutoModelForCausalLM
    config = peft.LoraConfig(target_modules=[query, layer], fan_in_fan_out=of == "gpt2")
    theirs = peft.get_peft_model(automatic.from_pretrained(folder), config)
    shake((p for p in theirs.parameters() if p.requires_grad), 0.2)
    theirs.save_pretrained(adapter, save_embedding_layers=False)
    with pytest.raises(
        ModelError, match=rf"adapts (\w+\.)?{layer}, whose weight is also that of .*{other}.*change both"
    ):
        merge(adapter, tmp_path / "m", torch.float32)
    with pytest.raises(ModelError, match="change both"):
        make_roles(adapter)
    assert not (tmp_path / "m").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's, of untying
def test_an_adapter_of_a_layer_that_is_read_past_is_not_folded_in(model_folder, plain, shake, tmp_path: Path) -> None:
    """One that never learnt changes nothing, and goes in."""
    base = model_folder("jamba")
    model = peft.get_peft_model(
        plain(base), peft.LoraConfig(target_modules=["dt_proj", "in_proj"], base_model_name_or_path=str(base))
    )
    shake([weight for name, weight in model.named_parameters() if "in_proj.lora_B" in name])
    model.save_pretrained(tmp_path / "idle")
    wanted = model.eval()(IDS).logits
    got = AutoModelForCausalLM.from_pretrained(merge(tmp_path / "idle", tmp_path / "m", torch.float32))(IDS).logits
    torch.testing.assert_close(got, wanted, atol=5e-5, rtol=1e-4)
    shake([weight for name, weight in model.named_parameters() if "dt_proj.lora_B" in name])
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"adapts .*dt_proj, whose weight jamba reads past the adapter"):
        merge(tmp_path / "other", tmp_path / "no", torch.float32)
    assert not (tmp_path / "no").exists()


def test_an_output_layer_of_its_own_is_folded_in_and_untied(model_folder, plain, shake, tmp_path: Path) -> None:
    theirs = peft.get_peft_model(
        plain(model_folder("gpt2")),
        peft.LoraConfig(target_modules=["c_attn"], modules_to_save=["lm_head"], fan_in_fan_out=True),
    )
    shake((p for p in theirs.parameters() if p.requires_grad), 0.2)
    theirs.save_pretrained(tmp_path / "a")
    merged = AutoModelForCausalLM.from_pretrained(merge(tmp_path / "a", tmp_path / "m", torch.float32))
    torch.testing.assert_close(merged(IDS).logits, theirs.eval()(IDS).logits, atol=2e-5, rtol=1e-4)


def started(init: str, base: Path, plain, shake, folder: Path) -> torch.Tensor:
    """An adapter that peft started with `init` and that has learnt since; returns what it says."""
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=init, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(plain(base), config)
    shake((p for p in theirs.parameters() if p.requires_grad), 0.2)
    theirs.save_pretrained(folder)
    return theirs.eval()(IDS).logits


@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_4"])
def test_an_adapter_that_started_from_its_base_s_weights_shares_no_base(
    init, model_folder, make_roles, plain, shake, tmp_path: Path
) -> None:
    """The base is another below it, once; a copy of the adapter, such as the policy that learns, would change it again."""
    wanted = started(init, model_folder("llama"), plain, shake, tmp_path / "a")
    again = f"accord merge {tmp_path}/a" if init != "pissa_niter_4" else "convert it to plain LoRA"
    with pytest.raises(ModelError, match=rf"init_lora_weights: {init}\).*several roles: .*{again}"):
        make_roles(tmp_path / "a", LoraConfig())
    if init == "pissa_niter_4":
        with pytest.raises(ModelError, match="cannot be told from its files: convert it to plain LoRA"):
            merge(tmp_path / "a", tmp_path / "m", torch.float32)
        assert not (tmp_path / "m").exists()
        return
    merged = AutoModelForCausalLM.from_pretrained(merge(tmp_path / "a", tmp_path / "m", torch.float32))
    torch.testing.assert_close(merged(IDS).logits, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("init", ["orthogonal", "gaussian"])
def test_other_starts_of_peft_change_nothing(init, model_folder, make_roles, plain, shake, tmp_path: Path) -> None:
    wanted = started(init, model_folder("llama"), plain, shake, tmp_path / "a")
    roles = make_roles(tmp_path / "a", LoraConfig(r=4))
    roles.add_policy()
    with roles.use("policy"):
        torch.testing.assert_close(logits(roles.adapters), wanted, atol=1e-5, rtol=1e-5)
    assert roles.adapters.config("policy").init_lora_weights is True


def test_a_whole_model_has_nothing_to_merge(model_folder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a whole model, so there is nothing to merge"):
        merge(model_folder("llama"), tmp_path / "m", torch.float32)


def test_whole_layers_that_an_adapter_brings_are_refused_and_not_dropped(
    model_folder, make_roles, plain, shake, tmp_path: Path
) -> None:
    """peft's `modules_to_save`: what plain peft says with them is far from what the factors alone say."""
    base = str(model_folder("llama"))
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(plain(Path(base)), config)
    shake((p for p in theirs.parameters() if p.requires_grad), 0.2)
    theirs.save_pretrained(tmp_path / "headed")
    said = rf"headed brings weights of whole layers beside its lora adapter \(lm_head\).*accord merge {tmp_path}/headed"
    with pytest.raises(ModelError, match=said):
        make_roles(tmp_path / "headed", LoraConfig())
    with pytest.raises(ModelError, match=said):
        AdapterSet(plain(Path(base)), base).load("x", tmp_path / "headed", ("score",))
    merged = AutoModelForCausalLM.from_pretrained(merge(tmp_path / "headed", tmp_path / "m", torch.float32))
    torch.testing.assert_close(merged(IDS).logits, theirs.eval()(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias")
@pytest.mark.parametrize("with_bias", ["all", "lora_only"])
def test_biases_that_an_adapter_brings_are_refused(with_bias, model_folder, plain, shake, tmp_path: Path) -> None:
    folder = model_folder("gpt2")
    config = peft.LoraConfig(target_modules=["c_attn"], bias=with_bias, fan_in_fan_out=True)
    theirs = peft.get_peft_model(plain(folder), config)
    shake((p for p in theirs.parameters() if p.requires_grad), 0.2)
    theirs.save_pretrained(tmp_path / "biased")
    with pytest.raises(ModelError, match=r"biased brings weights of whole layers .*c_attn"):
        AdapterSet(plain(folder), str(folder)).load("x", tmp_path / "biased")


def test_an_embedding_that_peft_saved_unchanged_is_no_change(model_folder, plain, shake, tmp_path: Path) -> None:
    folder = model_folder("llama")
    theirs = peft.get_peft_model(plain(folder), peft.LoraConfig(target_modules=["q_proj", "embed_tokens"]))
    shake((p for name, p in theirs.named_parameters() if "lora_" in name), 0.2)
    theirs.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert key in tensors
    ours = AdapterSet(plain(folder), str(folder))
    ours.load("x", tmp_path / "a")
    with ours.active("x", trains=False):
        torch.testing.assert_close(logits(ours), theirs.eval()(IDS).logits, atol=1e-5, rtol=1e-5)
    save_file(tensors | {key: tensors[key] + 1}, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="embed_tokens"):
        AdapterSet(plain(folder), str(folder)).load("x", tmp_path / "a")


def test_a_head_is_given_to_who_asks_for_it_and_refused_to_who_does_not(
    model_folder, plain, reward_adapter: Path
) -> None:
    folder = model_folder("llama")
    assert set(AdapterSet(plain(folder), str(folder)).load("x", reward_adapter, ("score",))) == {"score.weight"}
    with pytest.raises(ModelError, match=r"beside its lora adapter \(score\)"):
        AdapterSet(plain(folder), str(folder)).load("x", reward_adapter)
