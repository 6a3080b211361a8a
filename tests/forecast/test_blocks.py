"""The tape of each family against autograd's own hooks and the profiler, on real models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from accord.config import LoraConfig
from accord.forecast.blocks import Blocks
from accord.forecast.families import architecture
from accord.forecast.learning import learning_adapter
from accord.forecast.modes import Pass
from accord.forecast.shapes import Architecture
from accord.forecast.tape import FLOAT, Peak, Tape, replay
from forecast.measured import LENGTHS, measure

LORA = LoraConfig(r=8)
COMMON = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 160,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "num_hidden_layers": 3,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2}
STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**COMMON, **GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**COMMON, **GROUPED, head_dim=32),
    "mistral": lambda: transformers.MistralConfig(**COMMON, **GROUPED, sliding_window=512),
    "gemma3": lambda: transformers.Gemma3TextConfig(**COMMON, **GROUPED, head_dim=16),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**COMMON),
    "gpt2": lambda: transformers.GPT2Config(**COMMON, **STILL),
    "opt": lambda: transformers.OPTConfig(**COMMON, ffn_dim=160, word_embed_proj_dim=64, dropout=0.0),
    "cohere": lambda: transformers.CohereConfig(**COMMON),
    "mixtral": lambda: transformers.MixtralConfig(**COMMON, **GROUPED, **EXPERTS),
}
EXACT = {"saved": 0.015, "peak": 0.06, "frozen": 0.15}
ROUGH = {"saved": 0.08, "peak": 0.08, "frozen": 0.15}
"""Mixtral: how many tokens meet which expert is not known before."""


@pytest.fixture(scope="module")
def folder_of(tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")

    def get(family: str, dtype: str) -> Path:
        folder = root / f"{family}-{dtype}"
        if not folder.exists():
            automatic = transformers.AutoModelForCausalLM
            automatic.from_config(CONFIGS[family](), dtype=getattr(torch, dtype)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return get


def predicted(shape: Architecture, lora: LoraConfig | None, item: int, trains: bool = True, common: int = 0) -> Peak:
    """A policy's pass over `LENGTHS`, the second half of each sequence learnt, the first tokens in common; by hand."""
    adapter = learning_adapter(lora, shape) if lora else None
    others = len(LENGTHS) - 1
    tape = Tape(sum(LENGTHS) - others * common, trains)
    low = adapter.low if adapter else {}
    how = Pass(
        item,
        trains_base=trains and not lora,
        low=low,
        longest=max(LENGTHS),
        thin=lora and shape.family != "gpt2",
        own_backward=item == 2,
        joined=sum(LENGTHS[1:]) if common else 0,
    )
    hidden = Blocks(shape, tape, how).trunk()
    targets = sum(LENGTHS) // 2
    weight = shape.vocabulary * shape.embedding * item if how.trains_base else 0
    tile = targets * shape.vocabulary * FLOAT
    picked, out = tape.value(shape.embedding, item, hidden.grad, targets), tape.value(1, FLOAT, trains, targets)
    tape.add([hidden], picked)
    forward, backward = 2 * tile + tile * item // FLOAT, 0 if lora else 5 * tile + weight
    tape.add([picked, hidden], out, [picked], weight_grads=weight, scratch=forward, backward_scratch=backward)
    return replay(tape)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(("dtype", "lora"), [("float32", True), ("bfloat16", True), ("float32", False)])
def test_the_tape_counts_what_autograd_keeps(family, dtype, lora, folder_of):
    folder = folder_of(family, dtype)
    shape = architecture(json.loads((folder / "config.json").read_text()))
    real = measure(folder, LORA if lora else None)
    item = 2 if lora and dtype == "bfloat16" else FLOAT
    adapter = LORA if lora else None
    told, frozen = predicted(shape, adapter, item), predicted(shape, adapter, item, trains=False)
    bounds = {"mixtral": ROUGH, "cohere": EXACT | {"frozen": 0.35}}.get(family, EXACT)
    assert told.weight_grads == pytest.approx(real.left, rel=0.01)
    assert told.saved == pytest.approx(real.saved, rel=bounds["saved"])
    assert max(told.forward, told.backward) == pytest.approx(real.peak, rel=bounds["peak"])
    assert frozen.forward == pytest.approx(real.frozen, rel=bounds["frozen"])


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prefix_in_common_counts_once_and_its_keys_for_each(family, dtype, folder_of):
    folder = folder_of(family, dtype)
    shape = architecture(json.loads((folder / "config.json").read_text()))
    real = measure(folder, LORA, common=32)
    told = predicted(shape, LORA, 2 if dtype == "bfloat16" else FLOAT, common=32)
    assert told.saved == pytest.approx(real.saved, rel=0.03)
    assert max(told.forward, told.backward) == pytest.approx(real.peak, rel=0.08)


def test_layers_add_up(folder_of):
    """Each layer keeps the same, but the first of a frozen base, into which no gradient flows."""
    made = architecture(json.loads((folder_of("llama", "float32") / "config.json").read_text()))
    import dataclasses

    saved = [
        predicted(dataclasses.replace(made, layers=made.layers[:1] * count), LORA, FLOAT).saved for count in (2, 3, 4)
    ]
    assert saved[2] - saved[1] == saved[1] - saved[0] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dora_keeps_what_the_base_gave_and_what_the_adapter_gave(dtype, folder_of):
    folder, dora = folder_of("llama", dtype), LoraConfig(r=8, dora=True)
    shape = architecture(json.loads((folder / "config.json").read_text()))
    real, told = measure(folder, dora), predicted(shape, dora, 2 if dtype == "bfloat16" else FLOAT)
    assert told.weight_grads == pytest.approx(real.left, rel=0.01)
    # The hooks also count an identity matrix for each layer, which is let go at once: much beside 256 tokens, not beside more.
    assert 0.88 * real.saved < told.saved < real.saved
    assert max(told.forward, told.backward) == pytest.approx(real.peak, rel=0.15)
