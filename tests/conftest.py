"""Tiny random models of several families, with one tokenizer; nothing is fetched."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ACCORD_CACHE"] = tempfile.mkdtemp(prefix="accord-tests-")

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedTokenizerFast

from accord.model.tiny import train_tokenizer

atexit.register(shutil.rmtree, os.environ["ACCORD_CACHE"], True)
WINDOW = 5
"""Sliding window of the tiny Mistral: shorter than the sequences of the tests."""


@pytest.fixture(autouse=True)
def _same_random_numbers_each_time() -> None:
    torch.manual_seed(0)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], str]:
    """`hub_cache("owner/name", folder)`: the folder's files in a hub cache, as if they had been fetched; gives the name."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))

    def put(name: str, folder: Path) -> str:
        here, commit = cache / f"models--{name.replace('/', '--')}", "1" * 40
        shutil.copytree(folder, here / "snapshots" / commit)
        (here / "refs").mkdir()
        (here / "refs" / "main").write_text(commit)
        return name

    return put


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the film was good and the end was odd", "a slow film with a fine cast"] * 4, 300)


def _config(family: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    common = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "initializer_range": 0.25,  # sharp enough that a wrong token, position or mask shows
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    grouped = {"num_key_value_heads": 2}
    gpt2 = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "tie_word_embeddings": True}
    configs: dict[str, Callable[[], PreTrainedConfig]] = {
        "llama": lambda: transformers.LlamaConfig(**common),
        "llama_grouped": lambda: transformers.LlamaConfig(**common, **grouped),
        "qwen3": lambda: transformers.Qwen3Config(**common, **grouped, head_dim=8),
        "mistral": lambda: transformers.MistralConfig(**common, **grouped, sliding_window=WINDOW),
        "gpt2": lambda: transformers.GPT2Config(**common | gpt2),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**common),
    } | _more_configs(common, grouped)
    return configs[family]()


def _more_configs(common: dict, grouped: dict) -> dict[str, Callable[[], PreTrainedConfig]]:
    """Families with something of their own: other layers than attention, experts, an encoder, scaled logits."""
    special = {key: value for key, value in common.items() if key.endswith("token_id") or key == "vocab_size"}
    experts = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.02}
    windows = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
    gemma = common | grouped | windows | {"head_dim": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": True}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    layers = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    mamba = {"mamba_d_state": 4, "mamba_d_conv": 3}
    heads = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_chunk_size": 4, "lm_head_multiplier": 0.4}
    t5 = special | {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    t5 |= {"decoder_start_token_id": special["pad_token_id"], "initializer_factor": 0.5}
    turns = {"short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 1.5], "original_max_position_embeddings": 20}
    longrope = {"rope_type": "longrope", "rope_theta": 10_000.0, "factor": 8.0} | turns
    opt = {"ffn_dim": 48, "word_embed_proj_dim": 16, "dropout": 0.0, "init_std": 0.25}
    return {
        "gemma3": lambda: transformers.Gemma3TextConfig(**gemma),
        "gemma3_images": lambda: transformers.Gemma3Config(
            text_config=gemma,
            vision_config=vision | {"image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            image_token_index=7,
            **{key: special[key] for key in special if key != "vocab_size"},
        ),
        "bloom": lambda: transformers.BloomConfig(
            **special, n_layer=2, n_head=4, hidden_size=32, initializer_range=0.25
        ),
        "opt": lambda: transformers.OPTConfig(**common | opt),
        "mixtral": lambda: transformers.MixtralConfig(**common, **grouped, **experts, num_local_experts=4),
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
            **common, **grouped, **experts, head_dim=8, num_experts=4, moe_intermediate_size=24
        ),
        "jamba": lambda: transformers.JambaConfig(**common, **grouped, **experts, **layers, **mamba, num_experts=4),
        "mamba": lambda: transformers.MambaConfig(**special, hidden_size=32, num_hidden_layers=2, state_size=4),
        "t5": lambda: transformers.T5Config(**t5),
        "t5_unscaled": lambda: transformers.T5Config(**t5, tie_word_embeddings=False),
        "mt5": lambda: transformers.MT5Config(**t5),
        "umt5": lambda: transformers.UMT5Config(**t5),
        "cohere": lambda: transformers.CohereConfig(**common, logit_scale=0.25),
        "granite": lambda: transformers.GraniteConfig(**common, logits_scaling=3.0, attention_multiplier=0.3),
        "falcon_h1": lambda: transformers.FalconH1Config(**common, **grouped, **mamba, **heads),
        "gemma2": lambda: transformers.Gemma2Config(**gemma),
        "phimoe": lambda: transformers.PhimoeConfig(**common, **grouped, num_local_experts=4, sliding_window=WINDOW),
        "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
            **common,
            **grouped,
            num_experts=4,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=16,
            use_sliding_window=True,
            sliding_window=WINDOW,
            max_window_layers=2,
        ),
        "doge": lambda: transformers.DogeConfig(**common, **grouped),
        "phi3_longrope": lambda: transformers.Phi3Config(
            **common, **grouped, rope_parameters=longrope, original_max_position_embeddings=20
        ),
        "jetmoe": lambda: transformers.JetMoeConfig(**common, kv_channels=8, num_local_experts=4),
    }


@pytest.fixture(params=["llama", "llama_grouped", "qwen3", "mistral", "gpt2", "gpt_neox"])
def family(request: pytest.FixtureRequest) -> str:
    """Each family that packed attention has to be right for."""
    return request.param


@pytest.fixture(scope="session")
def model_folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`model_folder("llama")`: the folder of a tiny random model of that family. Read it, do not write to it."""
    root = tmp_path_factory.mktemp("models")

    def get(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(7)
                config = _config(family, tokenizer)
                automatic = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
                model = automatic.from_config(config)
            shake(model.parameters(), 0.05)  # biases too: fresh ones are 0 and would hide a bias left out
            start = getattr(config, "decoder_start_token_id", None)
            model.generation_config = transformers.GenerationConfig(
                pad_token_id=tokenizer.pad_token_id, decoder_start_token_id=start
            )
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return get


def shake(parameters: Iterable[nn.Parameter], size: float = 0.1, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


@pytest.fixture(name="shake", scope="session")
def _shake() -> Callable[..., None]:
    """Move weights off their start, as training would."""
    return shake
