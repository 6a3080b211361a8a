"""Runs on quantised bases: every role on one base, models of their own, resumed, saved, merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from accord.batch import TokenBatch
from accord.config import RECIPES, LoraConfig, ModelConfig, Recipe, build
from accord.errors import ConfigError, ModelError
from accord.model.merging import merge
from accord.model.roles import Roles
from accord.recipes import BUILDERS
from accord.training.loop import Parts
from model.kinds import plain_policy
from recipes.tiny_runs import recipe, recipe_dict, run, same_weights, saved_weights, timeless

pytest.importorskip("bitsandbytes")
KINDS = ("int8", "nf4")
CPU = torch.device("cpu")
LORA = LoraConfig(r=4, alpha=8)


def parts_of(settings: Recipe) -> Parts:
    return BUILDERS[settings.algorithm.type](settings)


def quantised(kind: str, over: dict | None = None) -> dict:
    return {"model": {"quantize": kind}} | (over or {})


@pytest.mark.parametrize("family_name", ["llama", "gpt_neox"])
@pytest.mark.parametrize("quantize", KINDS)
@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "ppo", "grpo"])
def test_recipes_run(kind: str, quantize: str, family_name: str, model_folder, tmp_path: Path) -> None:
    base = model_folder(family_name)
    over = quantised(quantize, {"train": {"activation_checkpointing": kind in ("sft", "ppo")}})
    if kind == "ppo":  # four roles on one base
        over["reward"] = str(run("reward", base, tmp_path / "reward", quantised(quantize)).model)
    done = run(kind, base, tmp_path / kind, over)
    assert len(done.metrics) == 2
    row = done.metrics[0]
    assert all(value == value for value in row.values())
    if kind in ("ppo", "grpo"):
        assert row["sampling/logprob_difference_max"] < 1e-4
        assert done.metrics[0]["objective/kl"] == pytest.approx(0, abs=1e-6)
        assert {f"memory/{phase}_gib" for phase in ("load", "rollout", "score", "update", "peak")} <= row.keys()
    weights = saved_weights(done.model)
    assert all(weight.is_floating_point() for weight in weights.values())
    assert any(weight.abs().max() > 0 for key, weight in weights.items() if "lora_B" in key)
    settings = json.loads((done.model / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)


def test_three_roles_share_one_set_of_codes(model_folder, tmp_path: Path) -> None:
    base = model_folder("llama")
    reward = run("reward", base, tmp_path / "reward", quantised("nf4")).model
    parts = parts_of(recipe("ppo", base, tmp_path / "ppo", quantised("nf4", {"reward": str(reward)})))
    roles = parts.learner.roles
    trunks = {id(role.trunk) for role in roles.roles.values()}
    assert set(roles.roles) == {"policy", "reference", "critic", "reward/run"}
    assert len(trunks) == 1
    assert "nf4, computes in float32" in parts.facts["model"]


@pytest.mark.parametrize("quantize", KINDS)
def test_resumed_equals_uninterrupted(quantize: str, base: Path, tmp_path: Path) -> None:
    over = quantised(quantize, {"train": {"iterations": 3, "activation_checkpointing": True}})
    whole = run("ppo", base, tmp_path / "whole", over)
    short = quantised(quantize, {"train": {"iterations": 2, "activation_checkpointing": True, "schedule": "constant"}})
    long = quantised(quantize, {"train": {"iterations": 3, "activation_checkpointing": True, "schedule": "constant"}})
    whole = run("ppo", base, tmp_path / "constant", long)
    run("ppo", base, tmp_path / "cut", short)
    resumed = run("ppo", base, tmp_path / "cut", long, resume=True)
    assert timeless(resumed.metrics) == timeless(whole.metrics)
    assert same_weights(resumed.model, whole.model)


@pytest.mark.parametrize(("quantize", "bound"), [("int8", 0.2), ("nf4", 4.0)])
def test_what_is_saved_loads_on_the_whole_base(quantize: str, bound: float, base: Path, tmp_path: Path) -> None:
    """Plain peft over the unquantised base: near int8's numbers, and NF4's within what 4 bits do to so small a model."""
    done = run("sft", base, tmp_path, quantised(quantize))
    model = plain_policy(done.model, base)
    roles = Roles(
        build(RECIPES["sft"], recipe_dict("sft", done.model, tmp_path / "x", quantised(quantize))).model, LORA, CPU
    )
    roles.add_policy()
    ids = torch.tensor([[3, 17, 42, 99, 7]])
    logits = model(input_ids=ids).logits
    with torch.no_grad(), roles.use("policy") as role:
        ours = role.output(role.trunk(input_ids=ids, use_cache=False).last_hidden_state)
    difference = (ours - logits).abs().max()
    assert 0 < difference < bound


@pytest.mark.parametrize("quantize", KINDS)
def test_merging_goes_through_the_original_weights(quantize: str, base: Path, tmp_path: Path) -> None:
    done = run("sft", base, tmp_path / "run", quantised(quantize, {"train": {"learning_rate": 0.05}}))
    merged = merge(done.model, tmp_path / "merged", torch.float32)
    after, before = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (merged, base))
    adapter = load_file(done.model / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    expected = before["model.layers.0.mlp.up_proj.weight"] + 2.0 * adapter[key.format("B")] @ adapter[key.format("A")]
    assert torch.allclose(after["model.layers.0.mlp.up_proj.weight"], expected, atol=1e-6)
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    assert str(base.name) in (done.model / "README.md").read_text()


@pytest.mark.parametrize("quantize", KINDS)
@pytest.mark.parametrize("other", ["reward_classifier", "reward_adapter"])
def test_models_of_their_own_are_quantised_too(
    quantize: str, other: str, base: Path, model_folder, request, tmp_path: Path
) -> None:
    """A reward model and a reference that are not on the policy's base; an adapter of theirs stays beside the codes."""
    from accord.model.quantized import LAYERS

    reward = request.getfixturevalue(other)
    policy = model_folder("gpt_neox")
    over = quantised(
        quantize,
        {
            "reward": {"model": str(reward), "offload": True},
            "reference": {"source": "model", "path": str(policy), "offload": True},
        },
    )
    parts = parts_of(recipe("ppo", policy, tmp_path, over))
    roles = parts.learner.roles
    for name, role in roles.roles.items():
        layers = [module for module in role.trunk.modules() if isinstance(module, LAYERS[quantize])]
        assert layers, name
    assert "nothing moves" in parts.facts["offload"]
    assert {name for name, role in roles.roles.items() if role.offload} == {"reference", "reward/run"}
    whole = parts_of(recipe("ppo", policy, tmp_path / "whole", {"reward": str(reward)}))
    batch = TokenBatch.from_sequences([[3, 17, 42], [9, 8, 7, 6]], [[False] * 3, [False] * 4])
    scores = [p.scorer.sequence_scores("reward/run", batch) for p in (parts, whole)]
    assert not torch.equal(*scores) and torch.allclose(*scores, atol=0.05 if quantize == "int8" else 1.0)


def test_a_held_adapter_acts_without_being_switched(base: Path, sft_adapter: Path) -> None:
    roles = Roles(ModelConfig(path=str(base), quantize="int8"), LORA, CPU)
    model, _ = roles._own_model(str(sft_adapter))
    ids = torch.tensor([[3, 17, 42, 99, 7]])
    expected = plain_policy(sft_adapter, base)(input_ids=ids).logits
    bare = AutoModelForCausalLM.from_pretrained(base)(input_ids=ids).logits
    ours = model(input_ids=ids, use_cache=False).logits
    assert (ours - expected).abs().max() < 0.5 * (bare - expected).abs().max()
    assert not any(parameter.requires_grad for parameter in model.parameters())


# --- what cannot be -----------------------------------------------------------------------------------------------------


def test_all_weights_cannot_learn_in_8_bits(base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.quantize: int8 freezes the weights, and `adapter: null` trains them"
    ):
        recipe("sft", base, tmp_path, quantised("int8", {"adapter": None}))


def test_gguf_files_are_not_quantised_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a GGUF file is dequantised as a whole"):
        recipe("sft", "x/model.gguf", tmp_path, quantised("nf4"))


def test_a_missing_package_is_told_before_weights_are_read(base: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("accord.recipes.family.find_spec", lambda name: None)
    monkeypatch.setattr("accord.model.roles.load_weights", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ConfigError, match=r'needs the package bitsandbytes.*pip install "accord\[quant\]"'):
        parts_of(recipe("sft", base, tmp_path, quantised("nf4")))


def test_a_family_that_cannot_be_is_told_before_weights_are_read(model_folder, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("accord.model.roles.load_weights", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ModelError, match="experts are no linear layers"):
        parts_of(recipe("sft", model_folder("mixtral"), tmp_path, quantised("nf4")))


def test_dora_needs_whole_blocks(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapter\.dora: .* width of 32, no multiple of 64"):
        parts_of(recipe("sft", base, tmp_path, quantised("nf4", {"adapter": {"dora": True}})))


def test_a_saved_dora_adapter_needs_whole_blocks_too(base: Path, tmp_path: Path, monkeypatch) -> None:
    saved = run("sft", base, tmp_path / "dora", {"adapter": {"dora": True}}).model
    roles = Roles(ModelConfig(path=str(base), quantize="nf4"), LORA, CPU)
    with pytest.raises(ConfigError, match=r"the adapter reward is DoRA: .* width of 32, no multiple of 64"):
        roles.adapters.load("reward", saved)
    monkeypatch.setattr("accord.model.roles.load_weights", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ConfigError, match=r"dora/run/model is a DoRA adapter: .* width of 32, no multiple of 64"):
        parts_of(recipe("sft", saved, tmp_path / "on", quantised("nf4")))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {"adapter": {"method": "prefix"}, "train": {"activation_checkpointing": True}},
            "prefix tuning keeps its virtual",
        ),
        ({"reference": {"offload": True}}, "reads the policy's own base, so there is nothing to move"),
        ({"adapter": None, "reference": {"source": "shared_layers", "k": 1, "offload": True}}, "reads the policy's"),
        ({"reward": {"function": "f.py:f", "offload": True}}, "`offload` goes with model or models"),
    ],
)
def test_settings_that_do_nothing_are_refused(over: dict, message: str, base: Path, tmp_path: Path) -> None:
    given = recipe_dict("ppo", base, tmp_path)
    with pytest.raises(ConfigError, match=message):
        build(RECIPES["ppo"], given | over)
