"""Quantised bases: codes are bitsandbytes' own, products and gradients those of the dequantised weights, memory is bounded."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from accord.batch import TokenBatch
from accord.config import CriticConfig, LoraConfig, ModelConfig, ReferenceConfig
from accord.errors import ConfigError, ModelError
from accord.model.export import save_policy
from accord.model.forward import forward
from accord.model.loading import load_weights
from accord.model.lora import ThinForward, use_thin_layers
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.ops import products
from accord.rollout.native import NativeEngine
from accord.rollout.protocol import Request, Sampling
from model.kinds import KINDS as ADAPTERS
from model.kinds import ONE_EACH, VIRTUAL

bnb = pytest.importorskip("bitsandbytes")

from accord.model import quantized  # noqa: E402  needs bitsandbytes

CPU = torch.device("cpu")
KINDS = ("int8", "nf4")
FAMILIES = ("llama", "gpt_neox", "gpt2", "opt", "bloom", "gemma3_images", "t5")
BOUND = {"int8": 0.005, "nf4": 0.17}
"""Greatest difference of the tiny models' weights from the whole ones, as a share of the greatest weight of a matrix. int8: half
a step of 1/127, and a little for float16. NF4's widest gap lies between -1 and -0.696, so a rounded weight is off by at most
0.152, and double quantisation adds a little."""


def weight_of(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(4)) * 0.05
    weight[0, 0], weight[-1, 1] = 1.5, 0.0
    return weight.to(dtype)


# --- codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(200, 32), (130, 96), (7, 5), (1, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_in_portions_are_those_of_bitsandbytes_for_the_whole(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = weight_of(shape, dtype)
    codes, absmax = quantized.quantize_rows(weight, elements=64 * shape[1])
    expected, scales, _ = bnb.functional.int8_vectorwise_quant(weight.to(torch.float16))
    assert torch.equal(codes, expected) and torch.equal(absmax, scales)
    packed, state = quantized.quantize_nf4(weight, elements=64 * shape[1])
    whole, other = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    assert torch.equal(packed, whole)
    ours, theirs = state.as_dict(), other.as_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        same = torch.equal(ours[key], value) if isinstance(value, Tensor) else ours[key] == value
        assert same, key


def test_portions_cut_no_block() -> None:
    assert [(s.start, s.stop) for s in quantized._portions((200, 10), 700)] == [
        (0, 64), (64, 128), (128, 192), (192, 200),
    ]  # fmt: skip
    assert [(s.start, s.stop) for s in quantized._portions((200, 10), 1280)] == [(0, 128), (128, 200)]


# --- one layer -------------------------------------------------------------------------------------------------------


def layer_of(kind: str, shape: tuple[int, int], dtype: torch.dtype, bias: bool = True) -> nn.Module:
    layer = quantized.LAYERS[kind](shape[1], shape[0], bias)
    layer.set_weight(weight_of(shape, dtype))
    if bias:
        layer.bias = nn.Parameter(torch.linspace(-1, 1, shape[0]).to(dtype), requires_grad=False)
    return layer.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [32, 64, 80, 7])
@pytest.mark.parametrize(
    ("dtype", "tolerance", "fast"),
    [(torch.float32, 1e-5, True), (torch.bfloat16, 2e-2, True), (torch.bfloat16, 8e-3, False)],
    ids=["float32", "bfloat16", "bfloat16 in float32"],
)
def test_product_and_gradient_are_those_of_the_dequantised_weight(
    kind: str, width: int, dtype: torch.dtype, tolerance: float, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = frozenset({"float32", *(["bfloat16"] if fast else [])})
    monkeypatch.setattr(products, "fast_types", lambda: types)
    layer = layer_of(kind, (150, width), dtype)
    weight = quantized.dequantize(layer).double()
    assert (weight - weight_of((150, width), dtype)).abs().max() < 0.17 * 1.5, "see BOUND"
    with torch.no_grad():
        layer(torch.randn(1, width, dtype=dtype))  # what a rollout does first; see NF4Linear
    x = torch.randn(2, 5, width).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == dtype and y.shape == (2, 5, 150)
    expected = x.detach().double() @ weight.T + layer.bias.double()
    assert torch.allclose(y.double(), expected, atol=tolerance * float(expected.abs().max()))
    out = torch.randn(y.shape).to(dtype)
    (grad,) = torch.autograd.grad(y, x, out)
    wanted = out.double() @ weight
    assert torch.allclose(grad.double(), wanted, atol=tolerance * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [32, 80])
def test_tiles_do_not_show(kind: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(kind, (150, width), torch.float32)
    x = torch.randn(6, width, requires_grad=True)
    whole = layer(x)
    monkeypatch.setattr(quantized.LAYERS[kind].tiles, "__defaults__", (64 * width,))
    assert len(list(layer.tiles(torch.float32))) == 3
    tiled = layer(x)
    assert torch.allclose(whole, tiled, atol=1e-6)
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (whole, tiled)]
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("width", [16, 48, 64, 80, 160])
def test_nf4_takes_each_block_s_own_scale_whatever_the_width(width: int) -> None:
    """By the formula: a code's value times the scale of its block of 64, which run through the rows."""
    layer = layer_of("nf4", (64, width), torch.float32)
    state = layer.weight.quant_state
    packed = layer.weight.data.reshape(-1).int()
    codes = torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[: 64 * width]
    scales = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    expected = state.code[codes] * scales.repeat_interleave(64)[: 64 * width]
    assert torch.allclose(quantized.dequantize(layer).reshape(-1), expected, atol=1e-6)


def test_int8_gives_a_token_what_it_gets_alone() -> None:
    """LLM.int8 of a batch with an outlier would round other tokens differently."""
    layer = layer_of("int8", (96, 32), torch.float32)
    x = torch.randn(4, 32)
    x[0, 3] = 60.0
    assert torch.allclose(layer(x)[1:], layer(x[1:]), atol=1e-6)


def test_int8_is_nearer_to_its_weights_than_bitsandbytes_on_a_cpu() -> None:
    """bitsandbytes rounds each dequantised weight to bfloat16; whole numbers need no rounding."""
    ours = layer_of("int8", (256, 64), torch.bfloat16, bias=False)
    theirs = bnb.nn.Linear8bitLt(64, 256, bias=False, has_fp16_weights=False)
    theirs.weight = bnb.nn.Int8Params(weight_of((256, 64), torch.bfloat16), has_fp16_weights=False, requires_grad=False)
    theirs = theirs.to("cpu").train()
    x = torch.randn(32, 64).bfloat16()
    exact = x.double() @ quantized.dequantize(ours).double().T
    errors = [float((layer(x).double() - exact).pow(2).mean().sqrt()) for layer in (ours, theirs)]
    assert errors[0] < 1.05 * errors[1] and errors[0] < 0.01 * float(exact.std())


def test_scales_move_with_their_codes() -> None:
    layer = layer_of("int8", (16, 8), torch.float32)
    nn.Sequential(layer).to("meta")  # bitsandbytes' own `to` does it for a layer, but not for what holds layers
    assert layer.weight.device.type == layer.state.SCB.device.type == "meta"
    assert layer_of("int8", (16, 8), torch.float32).to(torch.bfloat16).state.SCB.dtype == torch.float32
    model = nn.Sequential(layer_of("nf4", (16, 8), torch.float32)).to("cpu")
    assert torch.equal(model(torch.ones(1, 8)), layer_of("nf4", (16, 8), torch.float32)(torch.ones(1, 8)))


# --- a whole model ---------------------------------------------------------------------------------------------------


def quantised_layers(model: nn.Module) -> dict[str, nn.Module]:
    kinds = tuple(quantized.LAYERS.values())
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family_name", FAMILIES)
def test_all_linear_layers_of_the_trunk_and_no_others(kind: str, family_name: str, model_folder) -> None:
    folder = str(model_folder(family_name))
    plain = load_weights(folder, torch.float32, CPU)
    model = load_weights(folder, torch.float32, CPU, quantize=kind)
    found = quantised_layers(model)
    before = {name: module for name, module in plain.named_modules() if quantized.quantizable(module)}
    left = {name for name in before if name not in found}
    heads = ("lm_head", "embed_out")
    towers = ("vision_tower", "multi_modal")
    assert not any(tower in name for name in found for tower in towers)
    fp32 = (".wo",) if family_name == "t5" else ()  # transformers keeps these in float32
    assert found and all(
        name in heads or any(t in name for t in towers) or name.endswith(fp32 or ("?",)) for name in left
    )
    for name, module in found.items():
        original = before[name].weight if isinstance(before[name], nn.Linear) else before[name].weight.T
        error = (quantized.dequantize(module) - original).abs().max() / original.abs().max()
        assert error < BOUND[kind], name
        assert error > 0, name
    others = {key: value for key, value in model.named_parameters() if key.rpartition(".")[0] not in found}
    expected = dict(plain.named_parameters())
    assert others and all(torch.equal(value, expected[key]) for key, value in others.items())
    assert model.generation_config.to_dict() == plain.generation_config.to_dict()
    assert model.num_parameters() == plain.num_parameters()


def dequantised(model: nn.Module) -> nn.Module:
    """The same model with ordinary layers that hold the very weights that the quantised ones stand for."""
    for name, module in quantised_layers(model).items():
        layer = nn.Linear(module.in_features, module.out_features, module.bias is not None)
        layer.weight = nn.Parameter(quantized.dequantize(module).float(), requires_grad=False)
        layer.bias = None if module.bias is None else nn.Parameter(module.bias.float(), requires_grad=False)
        model.set_submodule(name, layer)
    return model


def gradients_of(roles: Roles, batch: TokenBatch, name: str) -> dict[str, Tensor]:
    with roles.use(name, train=True) as role:
        outputs = forward(role, batch)
        stream = outputs.logprobs_T if role.output is not None else outputs.values_T
        assert stream is not None
        stream.square().sum().backward()
    return {key: p.grad.clone() for key, p in roles.trainable(name).items() if p.grad is not None}


def roles_on(folder: Path, kind: str, adapter=None, dtype: str = "auto") -> Roles:
    torch.manual_seed(2)
    return Roles(ModelConfig(path=str(folder), quantize=kind, dtype=dtype), adapter or LoraConfig(r=4, alpha=8), CPU)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family_name", ["llama", "gpt_neox", "gpt2", "mistral", "bloom"])
def test_gradients_after_a_rollout_are_those_of_the_dequantised_weights(
    kind: str, family_name: str, model_folder, batch: TokenBatch, shake
) -> None:
    """The trap: 4-bit layers repacked for inference by the first pass without gradients lose them from then on."""
    roles = roles_on(model_folder(family_name), kind)
    roles.add_policy(CriticConfig(source="adapter"))
    roles.add_critic(CriticConfig(source="adapter"))
    for name in ("policy", "critic"):
        shake(roles.trainable(name).values(), seed=5)
    engine = NativeEngine(roles, 4)
    engine.generate([Request((3, 4, 5), 0), Request((7,), 1)], Sampling(max_new_tokens=4))
    Scorer(roles, 64).score(batch, ["old_logprobs_T", "values_T"])
    ours = {name: gradients_of(roles, batch, name) for name in ("policy", "critic")}
    other = roles_on(model_folder(family_name), kind)
    dequantised(other.model)
    for flag in quantized.FLAGS.values():  # ordinary layers take peft's ordinary adapters
        if hasattr(other.model, flag):
            setattr(other.model, flag, False)
    other.add_policy(CriticConfig(source="adapter"))
    other.add_critic(CriticConfig(source="adapter"))
    for name in ("policy", "critic"):
        for key, weight in other.trainable(name).items():
            weight.data.copy_(roles.trainable(name)[key])
        expected = gradients_of(other, batch, name)
        assert expected.keys() == ours[name].keys() and expected
        for key, gradient in expected.items():
            assert gradient.abs().max() > 0, key
            assert torch.allclose(ours[name][key], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())), key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.1)])  # bfloat16's own noise: 0.06
def test_lora_in_the_inputs_type_is_peft_s(
    kind: str, dtype: str, tolerance: float, model_folder, batch: TokenBatch, shake
) -> None:
    found = []
    for computes in ("auto", "float32"):
        roles = roles_on(model_folder("opt"), kind, LoraConfig(r=4, alpha=8, dtype=computes), dtype)
        roles.add_policy()
        shake(roles.trainable("policy").values(), seed=5)
        wrapped = [m for m in roles.model.modules() if isinstance(m, LoraLayer)]
        assert wrapped and all(isinstance(m, ThinForward) == (computes == "auto") for m in wrapped)
        found.append(gradients_of(roles, batch, "policy"))
    ours, theirs = found
    assert ours.keys() == theirs.keys() and ours
    assert all(gradient.dtype == torch.float32 for gradient in ours.values())
    whole, expected = (torch.cat([g.flatten() for g in found.values()]) for found in (ours, theirs))
    assert float((whole - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_lora_keeps_its_input_once_and_in_its_own_type(kind: str) -> None:
    layer = layer_of(kind, (150, 64), torch.bfloat16)
    model = nn.Sequential(layer)
    setattr(model, quantized.FLAGS[kind], True)
    config = PeftLoraConfig(r=4, target_modules=["0"])
    use_thin_layers(config, model)
    wrapped = get_peft_model(model, config).base_model.model[0]
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
        y = wrapped(torch.randn(40, 64).bfloat16().requires_grad_())
    assert y.dtype == torch.bfloat16 and sum(sizes) == 2 * (40 * 64 + 40 * 4 + 4 * (64 + 150))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", ONE_EACH)
def test_every_kind_of_adapter_learns_on_a_quantised_base(
    kind: str, adapter: str, model_folder, tokenizer, batch: TokenBatch, tmp_path: Path
) -> None:
    folder = model_folder("llama")
    if (kind, adapter) == ("nf4", "dora"):  # refused where widths are no multiples of 64
        with pytest.raises(ConfigError, match="the adapter policy is DoRA"):
            roles_on(folder, kind, ADAPTERS[adapter]).add_policy()
        folder = write_llama(tmp_path / "base", tokenizer, 2, hidden=64, spread=0.2)
    roles = roles_on(folder, kind, ADAPTERS[adapter])
    roles.add_policy()
    roles.add_reference(ReferenceConfig())
    if adapter not in VIRTUAL:  # virtual tokens change what the model says from the start
        streams = Scorer(roles, 64).score(batch, ["old_logprobs_T", "ref_logprobs_T"])
        assert torch.allclose(streams["old_logprobs_T"], streams["ref_logprobs_T"], atol=1e-5)
    gradients = gradients_of(roles, batch, "policy")
    assert gradients and any(gradient.abs().max() > 0 for gradient in gradients.values())
    assert all(
        not p.requires_grad for name, p in roles.model.named_parameters() if "lora" not in name and "ia3" not in name
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family_name", ["llama", "gpt_neox"])
@pytest.mark.parametrize("adapter", ["ia3", "adalora"])
def test_other_adapters_compute_in_16_bits_too(
    kind: str, family_name: str, adapter: str, model_folder, batch: TokenBatch, shake
) -> None:
    """peft's layers over bitsandbytes' own would give float32 to a model that computes in bfloat16."""
    found = []
    for dtype in ("float32", "bfloat16"):
        roles = roles_on(model_folder(family_name), kind, ADAPTERS[adapter], dtype)
        roles.add_policy()
        shake(roles.trainable("policy").values(), seed=5)
        given = []
        for module in roles.model.modules():
            if isinstance(module, BaseTunerLayer):
                module.register_forward_hook(lambda _module, _inputs, y, given=given: given.append(y.dtype))
        found.append(torch.cat([g.flatten() for g in gradients_of(roles, batch, "policy").values()]))
        assert set(given) == {getattr(torch, dtype)}
    whole, half = found
    assert float((half - whole).norm()) < 0.2 * float(whole.norm()), (
        "bfloat16's own noise in these sharp models: 0.05 to 0.15"
    )


def test_int8_in_float16_stays_in_its_range() -> None:
    """Sums of codes are up to 127 times as large as the product: beyond 65,504."""
    layer = quantized.Int8Linear(4096, 64, False)
    layer.set_weight((torch.randn(64, 4096, generator=torch.Generator().manual_seed(0)) * 0.02).half())
    weight = quantized.dequantize(layer).float()
    x = torch.randn(3, 4096, generator=torch.Generator().manual_seed(1)) * 8
    x[:, 7], x[:, 9] = 600.0, 900.0
    x = x.half().requires_grad_()
    y = layer(x)
    expected = x.detach().float() @ weight.T
    assert torch.allclose(y.float(), expected, atol=2e-3 * float(expected.abs().max()))
    out = torch.randn(3, 64, generator=torch.Generator().manual_seed(2)).mul(1e-4).half()
    (gradient,) = torch.autograd.grad(y, x, out)
    wanted = out.float() @ weight
    assert float((gradient.float() - wanted).norm()) < 0.01 * float(wanted.norm())


def test_weights_that_int8_cannot_stand_for_are_refused(model_folder, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder("llama"), dtype=torch.bfloat16)
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = 1e5
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj holds numbers beyond float16's 65,504, or none"):
        load_weights(str(tmp_path), torch.bfloat16, CPU, quantize="int8")
    load_weights(str(tmp_path), torch.bfloat16, CPU, quantize="nf4")


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_one_by_one(kind: str, model_folder, batch: TokenBatch, ids) -> None:
    roles = roles_on(model_folder("gpt_neox"), kind)
    roles.add_policy()
    together = Scorer(roles, 4096).score(batch, ["old_logprobs_T"])["old_logprobs_T"]
    parts = [batch.select([n]) for n in range(batch.sequences)]
    alone = torch.cat([Scorer(roles, 4096).score(part, ["old_logprobs_T"])["old_logprobs_T"] for part in parts])
    assert torch.allclose(together, alone, atol=1e-5)


def test_nf4_equals_plain_transformers_and_peft(tokenizer, ids, shake, tmp_path: Path) -> None:
    """Who loads the adapter over a base that plain transformers quantised gets the same numbers."""
    folder = write_llama(tmp_path / "base", tokenizer, 2, hidden=64, spread=0.2)  # bitsandbytes needs multiples of 64
    roles = roles_on(folder, "nf4", dtype="float32")
    roles.add_policy()
    shake(roles.trainable("policy").values(), seed=5)
    save_policy(roles, tmp_path / "adapter")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    plain = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, dtype=torch.float32, attn_implementation="eager", device_map={"": "cpu"}
    )
    model = PeftModel.from_pretrained(plain, tmp_path / "adapter").train()  # in evaluation mode some CPUs take bfloat16
    with roles.use("policy") as role:
        for sequence in ids:
            logits = model(input_ids=torch.tensor([sequence])).logits[0]
            hidden = role.trunk(input_ids=torch.tensor([sequence]), use_cache=False).last_hidden_state[0]
            assert torch.allclose(role.output(hidden), logits, atol=1e-4)


def test_a_checkpoint_that_is_quantised_already_keeps_its_gradients(model_folder, tmp_path: Path) -> None:
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    plain = AutoModelForCausalLM.from_pretrained(
        model_folder("llama"), quantization_config=settings, device_map={"": "cpu"}
    )
    plain.save_pretrained(tmp_path)
    model = load_weights(str(tmp_path), torch.float32, CPU)
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    with pytest.raises(ModelError, match="its checkpoint is quantised already"):
        load_weights(str(tmp_path), torch.float32, CPU, quantize="nf4")


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family_name", "reason"),
    [("mamba", "state-space layers"), ("jamba", "state-space layers"), ("mixtral", "experts are no linear layers")],
)
def test_families_that_cannot_be_are_refused_before_weights_are_read(family_name, reason, model_folder) -> None:
    with pytest.raises(ModelError, match=rf"model\.quantize: .* cannot be quantised: .*{reason}"):
        load_weights(str(model_folder(family_name)), torch.float32, CPU, quantize="nf4")


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_another_shape_is_an_error(kind: str, model_folder) -> None:
    from accord.model.tensors import open_tensors

    folder = str(model_folder("llama"))
    for key, size in (("model.layers.0.mlp.up_proj.weight", 3), ("model.embed_tokens.weight", 5)):
        tensors = dict(open_tensors(folder))
        tensors[key] = tensors[key][...][:-size]
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_weights(folder, torch.float32, CPU, quantize=kind, tensors=tensors)


# --- memory and noise --------------------------------------------------------------------------------------------------

LOAD = """
import sys, torch
from accord.model.device import PeakMemory
from accord.model.loading import load_weights
tiny, big, kind = sys.argv[1:]
cpu = torch.device("cpu")
load_weights(tiny, torch.bfloat16, cpu, quantize=kind)  # what is imported on the way
memory = PeakMemory(cpu)
memory.lap("before")
torch.empty(1)
before = memory.lap("now")
model = load_weights(big, torch.bfloat16, cpu, quantize=kind)
print(memory.lap("load") - before, model.get_memory_footprint() / 2**30)
"""


def write_llama(folder: Path, tokenizer, layers: int, hidden: int, spread: float) -> Path:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=1, max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(0.0, spread)
    model.save_pretrained(folder, max_shard_size="40MB")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is measured as Linux counts it")
def test_the_peak_while_loading_is_the_quantised_size_and_a_layer(tokenizer, model_folder, tmp_path: Path) -> None:
    write_llama(tmp_path, tokenizer, layers=6, hidden=1024, spread=0.02)
    assert len(list(tmp_path.glob("*.safetensors"))) >= 4
    layer = 28 / 1024  # GiB in bfloat16; the largest tensor has 8 MiB
    workspace = 32 / 1024  # float32 and int32 copies of a portion of 2**20 elements
    for kind, share in (("int8", 0.51), ("nf4", 0.27)):
        command = [sys.executable, "-c", LOAD, str(model_folder("llama")), str(tmp_path), kind]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        peak, size = map(float, done.stdout.split())
        assert size < share * 6 * layer + 0.002, "the model itself"
        assert peak < size + layer + workspace, (kind, peak, size)
        assert "gemm_4bit" not in done.stderr and "Failed" not in done.stderr


def test_deep_copies_and_pickles_of_layers_keep_the_weights() -> None:
    for kind in KINDS:
        layer = layer_of(kind, (64, 32), torch.float32)
        other = copy.deepcopy(layer)
        assert torch.equal(other(torch.ones(1, 32)), layer(torch.ones(1, 32)))
        assert getattr(other, "support_avx512bf16_for_cpu", False) is False
