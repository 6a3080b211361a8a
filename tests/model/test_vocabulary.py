"""Gemma 3 with the vocabulary that it has: 262,144 entries, shared by embedding and output layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from accord.batch import TokenBatch
from accord.config import LoraConfig
from accord.model.export import save_policy
from accord.model.forward import forward
from accord.ops.logprobs import TILE_ELEMENTS
from model.test_families import one_by_one
from ops.test_logprobs import LargestTensor

VOCABULARY = 262_144
LENGTHS = (30, 9, 17, 40, 2)


@pytest.fixture(scope="module")
def folder(tokenizer, shake, tmp_path_factory) -> Path:
    """Two narrow layers, one of them with a window; the embeddings are 2 million of its weights."""
    config = transformers.Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        query_pre_attn_scalar=4,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=5,
        max_position_embeddings=64,
        initializer_range=0.25,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config)
    shake(model.parameters(), 0.05)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    path = tmp_path_factory.mktemp("gemma") / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def batch() -> TokenBatch:
    """Sequences with tokens from all over the vocabulary, its first and last ones among them."""
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in LENGTHS]
    ids[0][7], ids[3][12], ids[3][13] = VOCABULARY - 1, 0, VOCABULARY - 1
    return TokenBatch.from_sequences(ids, [[t > 0 for t in range(length)] for length in LENGTHS])


@pytest.mark.parametrize("adapter", [LoraConfig(r=2, alpha=4), None], ids=["adapter", "full"])
def test_log_probabilities_and_gradients_are_those_of_one_sequence_at_a_time(
    adapter: LoraConfig | None, folder: Path, batch: TokenBatch, make_roles: Callable, shake, tmp_path: Path
) -> None:
    """With a frozen output layer, whose tiles exist once, and with one that learns and is the embedding, too. In neither pass is
    there a tensor of tokens x vocabulary."""
    roles = make_roles(folder, adapter)
    roles.add_policy()
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    if adapter is not None:
        shake(roles.trainable("policy").values())
        save_policy(roles, tmp_path)
        plain = peft.PeftModel.from_pretrained(plain, tmp_path, is_trainable=True).eval()
    weights = torch.linspace(-1, 1, batch.tokens)
    with roles.use("policy", train=True) as role, LargestTensor() as largest:
        got = forward(role, batch).logprobs_T
        assert got is not None
        (got * weights).sum().backward()
    assert len(LENGTHS) * VOCABULARY < largest.elements <= TILE_ELEMENTS < batch.targets * VOCABULARY / 2
    want = one_by_one(plain, batch)
    (want * weights).sum().backward()
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
    assert got[batch.target_mask_T].std() > 0.5, "far from uniform"
    expected, found = dict(plain.named_parameters()), roles.trainable("policy")
    assert len(found) == 28
    for name, parameter in found.items():
        other = name.removeprefix("adapter.").replace("trunk.", "model.", 1).replace(".policy.", ".default.")
        gradient = expected[other].grad
        assert gradient is not None and gradient.any(), name
        scale = float(gradient.abs().max())
        torch.testing.assert_close(parameter.grad / scale, gradient / scale, atol=2e-4, rtol=1e-3, msg=name)
