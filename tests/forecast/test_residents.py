"""Bytes that stay: the field's known figures, quantised bases, and which roles share what."""

from __future__ import annotations

import pytest

from accord.config import METHODS
from accord.errors import ConfigError, ModelError
from accord.forecast import residents as module
from accord.forecast.devices import parse_device
from accord.forecast.families import architecture
from accord.forecast.learning import optimizer_bytes
from accord.forecast.memory import forecast
from accord.forecast.residents import NF4, item_of, residents, weight_bytes
from forecast.measured import policy_of
from forecast.recipes import LLAMA_7B, NEOX_20B, TINY, recipe_of, shape_folder

GB = 10**9
BIG = parse_device("24GiB")


def held(terms, what, role=None):
    return sum(term.bytes for term in terms if term.what == what and role in (None, term.role))


def test_a_bfloat16_parameter_takes_two_bytes_and_adam_eight():
    shape = architecture(LLAMA_7B)
    assert weight_bytes(shape, 2) == 2 * shape.parameters
    assert optimizer_bytes("adamw", {}, 4) == 8


def test_seven_billion_take_about_seventy_gigabytes_before_gradients_and_activations():
    """The field's figure (StackLLaMA, 2023): 2 bytes of bfloat16 and 8 of Adam a parameter, 10 in all, no gradients counted."""
    shape = architecture(LLAMA_7B)
    both = weight_bytes(shape, 2) + shape.parameters * optimizer_bytes("adamw", {}, 4)
    assert both == 10 * shape.parameters
    assert both / GB == pytest.approx(67.4, abs=0.1)  # "7B" is 6.74 billion


def test_what_accord_itself_takes_for_seven_billion(tmp_path):
    """float32 by default, since small steps vanish in bfloat16: 4 + 8, and 4 more of gradients; bfloat16 halves all of them."""
    folder = shape_folder(tmp_path, LLAMA_7B)
    count = architecture(LLAMA_7B).parameters
    for dtype, item in (("auto", 4), ("bfloat16", 2)):
        made = residents(recipe_of("sft", folder, adapter=None, model={"dtype": dtype}))
        assert held(made.weights, "base") == item * count
        assert held(made.optimizer, "optimiser") == 2 * item * count


def test_quantised_sizes_of_twenty_billion():
    shape = architecture(NEOX_20B)
    packed, rest = shape.linear_parameters, shape.parameters - shape.linear_parameters
    rows = 44 * (3 * 6144 + 6144 + 24576 + 6144)
    assert weight_bytes(shape, 2, "int8") == packed + 4 * rows + 2 * rest
    assert weight_bytes(shape, 2, "int8") / GB == pytest.approx(21.19, abs=0.01)
    assert weight_bytes(shape, 2, "nf4") == int(packed * NF4) + 2 * rest
    assert pytest.approx(0.5159, abs=1e-4) == NF4
    assert weight_bytes(shape, 2, "nf4") / GB == pytest.approx(11.53, abs=0.01)


def test_the_type_of_weights_is_chosen_as_loading_chooses_it(monkeypatch):
    shape = architecture(LLAMA_7B)
    assert item_of("auto", shape, trained=False) == 2
    assert item_of("auto", shape, trained=True) == 4
    assert item_of("float16", shape, trained=True) == 2
    for types, size in ((frozenset({"float32"}), 4), (frozenset({"float32", "bfloat16", "float16"}), 2)):
        monkeypatch.setattr(module, "fast_types", lambda types=types: types)
        assert item_of("auto", shape, trained=False, cpu=True) == size
        assert item_of("auto", shape, trained=False) == item_of("bfloat16", shape, trained=False, cpu=True) == 2


def test_roles_share_a_frozen_base(tmp_path):
    """Policy, reference and critic: one base, two adapters, one head."""
    folder = shape_folder(tmp_path, TINY)
    made = residents(recipe_of("ppo", folder, adapter={"r": 2}))
    shape = architecture(TINY)
    assert held(made.weights, "base") == shape.parameters * 4
    adapter = 2 * (4 * (8 + 8) + 3 * (8 + 16)) * 4
    assert held(made.weights, "adapters") == 2 * adapter
    assert held(made.weights, "heads") == held(made.weights, "heads", "critic") == 8 * 4
    assert held(made.optimizer, "optimiser", "critic") == 2 * (adapter + 8 * 4)
    assert [learner.role for learner in made.learners] == ["policy", "critic"]


def test_full_fine_tuning_has_a_reference_of_its_own_less_the_shared_layers(tmp_path):
    config = TINY | {"num_hidden_layers": 4}
    folder, shape = shape_folder(tmp_path, config), architecture(config)
    whole = residents(recipe_of("grpo", folder, adapter=None))
    assert held(whole.weights, "base", "reference") == shape.parameters * 4
    shared = residents(recipe_of("grpo", folder, adapter=None, reference={"source": "shared_layers", "k": 3}))
    common = 10 * 8 + 3 * shape.layers[0].parameters
    assert held(shared.weights, "base", "reference") == (shape.parameters - common) * 4
    assert held(shared.optimizer, "optimiser") == 8 * (shape.parameters - common)


def test_dpo_asks_its_reference_once_and_keeps_none(tmp_path):
    folder = shape_folder(tmp_path, TINY)
    made = residents(recipe_of("dpo", folder, adapter=None))
    assert held(made.weights, "base", "reference") == 0
    kept = residents(recipe_of("kto", folder, adapter=None))
    assert held(kept.weights, "base", "reference") == architecture(TINY).parameters * 4


def test_a_reward_model_on_the_same_base_costs_its_adapter_alone(model_folder, tmp_path):
    base = model_folder("llama")
    roles = policy_of(base, METHODS["lora"](r=4), "auto")
    import torch

    roles.adapters.save("policy", tmp_path / "reward", task="SEQ_CLS", head={"score.weight": torch.zeros(1, 32)})
    reward = str(tmp_path / "reward")
    shared = residents(recipe_of("ppo", str(base), reward=[{"model": reward}]))
    assert held(shared.weights, "base", "reward") == 0
    learnt = sum(weight.numel() for weight in roles.trainable("policy").values())
    assert held(shared.weights, "adapters", "reward") == (learnt + 32) * 4
    own = residents(recipe_of("ppo", str(base), adapter=None, reward=[{"model": reward}]))
    shape = architecture_of(base)
    scorer = (shape.parameters - shape.output_parameters) * 4  # it has no output layer
    assert held(own.weights, "base", "reward") == scorer < shape.parameters * 4
    beside = residents(recipe_of("ppo", str(base), adapter={"method": "ia3"}, reward=[{"model": reward}]))
    assert held(beside.weights, "base", "reward") == scorer, "IA3 and LoRA do not share a base"
    virtual = residents(recipe_of("ppo", str(base), adapter={"method": "prompt"}, reward=[{"model": reward}]))
    assert held(virtual.weights, "base", "reward") == 0


def test_a_reward_model_has_no_output_layer_that_learns(model_folder):
    base = model_folder("llama")
    shape = architecture_of(base)
    told = residents(recipe_of("reward", str(base), adapter=None))
    assert told.learners[0].parameters == shape.parameters - shape.output_parameters


def test_a_reference_of_its_own_is_there_when_dpo_asks_it(tmp_path):
    small, large = shape_folder(tmp_path / "small", TINY), shape_folder(tmp_path / "large", LLAMA_7B)
    reference = {"source": "model", "path": large}
    told = {kind: forecast(recipe_of(kind, small, reference=reference), BIG) for kind in ("dpo", "kto")}
    size = architecture(LLAMA_7B).parameters * 2
    assert [told["dpo"].of(phase, "base", "reference") for phase in ("load", "score", "update")] == [size, size, 0]
    assert [told["kto"].of(phase, "base", "reference") for phase in ("load", "score", "update")] == [size] * 3


@pytest.mark.parametrize("method", ["lora", "adalora", "ia3", "prefix", "ptuning", "prompt"])
def test_a_run_that_goes_on_has_the_saved_adapters_shape_and_not_the_recipes(method, model_folder, tmp_path):
    saved = {
        "lora": {"r": 3, "targets": ("q_proj", "up_proj"), "dora": True},
        "adalora": {"init_r": 4, "target_r": 3, "targets": ("q_proj", "up_proj")},
        "ia3": {"targets": ("k_proj", "down_proj"), "feedforward": ("down_proj",)},
        "prefix": {"tokens": 3, "projection": True},
    }.get(method, {"tokens": 3})
    roles = policy_of(model_folder("llama"), METHODS[method](**saved), "auto")
    roles.adapters.save("policy", tmp_path / "adapter")
    goes_on = policy_of(tmp_path / "adapter", METHODS[method](), "auto")
    told = residents(recipe_of("sft", str(tmp_path / "adapter"), adapter={"method": method}))
    learnt = sum(weight.numel() for weight in goes_on.trainable("policy").values())
    assert told.learners[0].parameters == learnt


def architecture_of(folder):
    import json

    return architecture(json.loads((folder / "config.json").read_text()))


def test_what_cannot_be_is_refused(tmp_path, model_folder):
    folder = shape_folder(tmp_path / "tiny", TINY)
    with pytest.raises(ConfigError, match="freezes the weights, and `adapter: null` trains them"):
        residents(recipe_of("sft", folder, adapter=None, model={"quantize": "nf4"}))
    for family, why in (("mamba", "state-space layers"), ("qwen3_moe", "its experts are no linear layers")):
        with pytest.raises(ModelError, match=why):
            residents(recipe_of("sft", str(model_folder(family)), model={"quantize": "int8"}))
    codes = shape_folder(tmp_path / "codes", TINY | {"quantization_config": {"load_in_4bit": True}})
    with pytest.raises(ModelError, match="its checkpoint is quantised already"):
        residents(recipe_of("sft", codes, model={"quantize": "nf4"}))
    assert "codes the forecast does not know" in residents(recipe_of("sft", codes)).notes[0]
    with pytest.raises(ModelError, match=r"no model at .*tinny; did you mean .*tiny\?"):
        residents(recipe_of("sft", str(tmp_path / "tinny")))


def test_a_file_of_another_type_is_in_memory_while_it_is_read(tmp_path):
    folder = shape_folder(tmp_path, TINY | {"dtype": "bfloat16"})
    count = architecture(TINY).parameters
    assert [(load.bytes, load.mapped) for load in residents(recipe_of("sft", folder)).loads] == [(2 * count, 0)]
    full = residents(recipe_of("sft", folder, adapter=None))
    assert [(load.bytes, load.mapped) for load in full.loads] == [(4 * count, 2 * count)]
