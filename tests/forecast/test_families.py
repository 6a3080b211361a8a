"""Parameters from config.json equal those of transformers' own models on the meta device, one by one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from accord.errors import ModelError
from accord.forecast.families import FAMILIES, architecture

REAL: dict[str, dict] = {
    "Llama 7B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "Llama 3.2 1B": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "GPT-NeoX 20B": {
        "model_type": "gpt_neox",
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "vocab_size": 50432,
        "tie_word_embeddings": False,
        "rotary_pct": 0.25,
    },
    "SmolLM2 135M": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "Gemma 3 1B": {
        "model_type": "gemma3_text",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 262144,
        "sliding_window": 512,
    },
    "Qwen 3 0.6B": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Qwen 2.5 7B": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "Mistral 7B": {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "Mixtral 8x7B": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    },
    "GPT-2": {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257},
    "OPT 350M": {
        "model_type": "opt",
        "hidden_size": 1024,
        "ffn_dim": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": 512,
        "do_layer_norm_before": False,
    },
    "BLOOM 560M": {"model_type": "bloom", "hidden_size": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 250880},
}
PUBLISHED = {
    "Llama 7B": 6_738_415_616,
    "GPT-NeoX 20B": 20_554_567_680,
    "SmolLM2 135M": 134_515_008,
    "GPT-2": 124_439_808,
}
"""Known counts, so that a mistake shared with transformers' config would show."""


def counted_by_transformers(config: transformers.PreTrainedConfig) -> int:
    automatic = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = automatic.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", REAL)
def test_real_shapes_are_counted_as_transformers_counts_them(name):
    given = dict(REAL[name])
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    assert architecture(REAL[name]).parameters == counted_by_transformers(config)
    assert architecture(REAL[name]).parameters == PUBLISHED.get(name, architecture(REAL[name]).parameters)


TINY = [
    "llama", "llama_grouped", "qwen3", "mistral", "gpt2", "gpt_neox", "gemma3", "gemma3_images", "bloom", "opt", "mixtral",
    "qwen3_moe", "jamba", "mamba", "t5", "t5_unscaled", "mt5", "umt5", "cohere", "granite",
]  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_saved_configs_are_counted_as_transformers_counts_them(name, model_folder):
    folder: Path = model_folder(name)
    config = json.loads((folder / "config.json").read_text())
    assert architecture(config).parameters == counted_by_transformers(AutoConfig.from_pretrained(folder))


def test_every_family_is_tested(model_folder):
    kinds = {json.loads((model_folder(name) / "config.json").read_text())["model_type"] for name in TINY}
    assert kinds | {given["model_type"] for given in REAL.values()} == set(FAMILIES)


def test_what_packs_in_four_bits_are_the_linear_layers_alone():
    made = architecture(REAL["GPT-NeoX 20B"])
    assert made.linear_parameters == 44 * (6144 * 3 * 6144 + 6144 * 6144 + 2 * 6144 * 24576)
    assert made.output_parameters == 50432 * 6144
    assert made.layers[0].kv_width == 2 * 6144


def test_an_unknown_family_is_taken_for_a_llama_and_says_so():
    made = architecture({**REAL["Llama 7B"], "model_type": "novel"})
    assert made.parameters == PUBLISHED["Llama 7B"]
    assert made.approximate == "novel is taken for a Llama"


def test_errors_name_the_key_and_the_families():
    with pytest.raises(ModelError, match="no forecast for model_type 'perceiver'; known are bloom, cohere"):
        architecture({"model_type": "perceiver"})
    with pytest.raises(
        ModelError, match=r"here/config.json has no key 'vocab_size', which a model of type llama needs"
    ):
        architecture({k: v for k, v in REAL["Llama 7B"].items() if k != "vocab_size"}, "here/config.json")
