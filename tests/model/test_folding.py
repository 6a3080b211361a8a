"""Folding an adapter into its base for a while: what it computes, and that the base comes back."""

from __future__ import annotations

import pytest
import torch

from accord.batch import TokenBatch
from accord.config import LoraConfig, ModelConfig
from accord.errors import ModelError
from accord.model.folding import folded_bytes, round_either_way
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.rollout.native import NativeEngine
from accord.rollout.protocol import Request, Sampling
from model.kinds import KINDS

REQUESTS = [Request((5, 9, 30), 1), Request((7,), 2)]


def trained(folder, kind: str, shake, dtype: str = "float32") -> Roles:
    torch.manual_seed(2)
    roles = Roles(ModelConfig(path=str(folder), dtype=dtype), KINDS[kind], torch.device("cpu"))
    roles.add_policy()
    shake(roles.trainable("policy").values(), 0.2)
    return roles


def base_bits(roles: Roles) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in roles.model.state_dict().items()}


def same_bits(roles: Roles, before: dict[str, torch.Tensor]) -> bool:
    now = roles.model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


@pytest.mark.parametrize("of", ["llama_grouped", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("kind", ["lora", "rslora", "adalora"])
def test_the_folded_base_says_what_base_and_adapter_say(kind, of, model_folder, shake) -> None:
    roles = trained(model_folder(of), kind, shake)
    ids = torch.tensor([[5, 9, 30, 11, 7, 8]])
    with torch.no_grad(), roles.use("policy") as role:
        wanted = role.trunk(input_ids=ids, use_cache=False).last_hidden_state
        with roles.folded("policy", 0):
            got = role.trunk(input_ids=ids, use_cache=False).last_hidden_state
        after = role.trunk(input_ids=ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-4)
    assert torch.equal(after, wanted), "the adapter is on again, and the base as it was"
    assert not torch.equal(got, wanted), "folded in, sums come in another order"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ends", [None, RuntimeError, KeyboardInterrupt])
def test_the_base_comes_back_bit_for_bit_however_sampling_ends(ends, dtype, model_folder, shake) -> None:
    roles = trained(model_folder("llama"), "lora", shake, dtype)
    before = base_bits(roles)
    places = {name: parameter.data_ptr() for name, parameter in roles.model.named_parameters()}
    changed = []

    def hook(request: int, token: int) -> None:
        changed.append(not same_bits(roles, before))
        if ends is not None and len(changed) == 3:
            raise ends

    engine = NativeEngine(roles, 4, merge=True)
    if ends is None:
        engine.generate(REQUESTS, Sampling(4), on_token=hook)
    else:
        with pytest.raises(ends):
            engine.generate(REQUESTS, Sampling(4), on_token=hook)
    assert all(changed) and changed, "while it samples the base holds the adapter"
    assert same_bits(roles, before)
    assert {name: parameter.data_ptr() for name, parameter in roles.model.named_parameters()} == places, (
        "no copy is left"
    )
    assert all(not parameter.requires_grad for name, parameter in roles.model.named_parameters() if "lora" not in name)


def test_the_base_comes_back_if_folding_itself_fails(model_folder, shake, monkeypatch) -> None:
    roles = trained(model_folder("llama"), "lora", shake)
    before = base_bits(roles)
    layers = roles.foldable("policy")
    assert layers is not None and len(layers) == 14

    def fail(adapter: str) -> torch.Tensor:
        raise MemoryError

    monkeypatch.setattr(layers[9], "get_delta_weight", fail)
    with pytest.raises(MemoryError), roles.use("policy"), roles.folded("policy", 0):
        raise AssertionError("not reached")
    assert same_bits(roles, before)


@pytest.mark.parametrize(("of", "embedding"), [("llama", "embed_tokens"), ("gpt2", "wte")])
def test_an_adapted_embedding_is_neither_folded_nor_left_out(of, embedding, model_folder, shake, make_roles) -> None:
    """Also where the output layer is the same weight: what is sampled has the probabilities that the policy gives it."""
    query = {"llama": "q_proj", "gpt2": "c_attn"}[of]
    roles = make_roles(model_folder(of), LoraConfig(r=4, targets=(embedding, query)))
    roles.add_policy()
    shake(roles.trainable("policy").values(), 0.2)
    assert any("lora_embedding" in name for name in roles.trainable("policy"))
    assert roles.foldable("policy") is None
    with pytest.raises(ModelError, match="needs a plain LoRA adapter on linear layers"):
        NativeEngine(roles, 4, merge=True)
    for response, request in zip(NativeEngine(roles, 4).generate(REQUESTS, Sampling(64)), REQUESTS, strict=True):
        ids = list(request.prompt_ids + response.token_ids)
        targets = [False] * len(request.prompt_ids) + [True] * len(response.token_ids)
        wanted = Scorer(roles, 1000).score(TokenBatch.from_sequences([ids], [targets]), ["old_logprobs_T"])
        got = torch.tensor(response.logprobs)
        torch.testing.assert_close(got, wanted["old_logprobs_T"][len(request.prompt_ids) :], atol=1e-4, rtol=1e-4)


def test_what_cannot_be_folded_says_so(model_folder, shake) -> None:
    for kind in ("dora", "ia3", "prompt"):
        roles = trained(model_folder("llama"), kind, shake)
        assert roles.foldable("policy") is None
    assert trained(model_folder("mixtral"), "lora", shake).foldable("policy") is None, "stacked experts"
    roles = Roles(ModelConfig(path=str(model_folder("llama"))), None, torch.device("cpu"))
    roles.add_policy()
    assert roles.foldable("policy") is None
    half = trained(model_folder("llama"), "lora", shake)
    half.model.half()
    assert half.foldable("policy") is None, "float16 has no rounding here"


def test_the_copy_s_size(model_folder, shake) -> None:
    roles = trained(model_folder("llama"), "lora", shake)
    layers = roles.foldable("policy")
    assert layers is not None
    assert folded_bytes(layers) == 2 * (4 * 32 * 32 + 3 * 32 * 48) * 4, "two layers: q, k, v, o; gate, up, down"


def test_rounding_either_way_is_right_in_the_mean_and_next_to_the_number() -> None:
    exact = torch.tensor([1.0, 1.001, -1.001, 0.05 + 1e-5, 3e-3, -7.7]).repeat_interleave(200_000).view(6, -1)
    rounded = round_either_way(exact, 0).float()
    step = torch.finfo(torch.bfloat16).eps * 2.0 ** exact.abs().log2().floor()
    assert ((rounded - exact).abs() < step).all()
    assert (rounded[0] == 1.0).all(), "a bfloat16 number stays what it is"
    assert ((rounded - exact).mean(-1).abs() < 4 * step[:, 0] / 2 / 200_000**0.5).all()
    assert torch.equal(rounded, round_either_way(exact, 0).float())
    assert not torch.equal(rounded, round_either_way(exact, 1).float())


def test_rounding_keeps_what_is_not_finite() -> None:
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf]).repeat(1000)
    assert torch.equal(round_either_way(bad, 0).float().nan_to_num(7.0), bad.nan_to_num(7.0))
    full = (
        torch.tensor([2**31 - 1, -1], dtype=torch.int32).repeat(1000).view(torch.float32)
    )  # NaN with every bit of it set
    assert round_either_way(full, 0).isnan().all()


def test_an_adapter_that_has_learnt_little_is_not_rounded_away(model_folder, shake) -> None:
    """Deltas far below half a step of bfloat16: to the nearest, the folded base would be the bare one."""
    roles = trained(model_folder("llama"), "lora", shake, "bfloat16")
    for name, weight in roles.trainable("policy").items():
        if "lora_B" in name:
            weight.data.mul_(1e-3)
    layers = roles.foldable("policy")
    assert layers is not None
    base = [layer.get_base_layer().weight.float().clone() for layer in layers]
    deltas = [layer.get_delta_weight("policy").float() for layer in layers]
    seen = [torch.zeros_like(delta) for delta in deltas]
    for seed in range(40):
        with roles.use("policy"), roles.folded("policy", 1000 * seed):
            for total, layer, weight in zip(seen, layers, base, strict=True):
                total += (layer.get_base_layer().weight.float() - weight) / 40
    found, wanted = torch.cat([s.flatten() for s in seen]), torch.cat([d.flatten() for d in deltas])
    slope = float((found @ wanted) / (wanted @ wanted))
    nearest = torch.cat([((w + d).bfloat16().float() - w).flatten() for w, d in zip(base, deltas, strict=True)])
    assert abs(slope - 1) < 0.1
    assert abs(float((nearest @ wanted) / (wanted @ wanted)) - 1) > 0.2, "the case is one where rounding matters"
