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
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from accord.model.tiny import train_tokenizer

atexit.register(shutil.rmtree, os.environ["ACCORD_CACHE"], True)
WINDOW = 5
"""Sliding window of the tiny Mistral: shorter than the sequences of the tests."""


@pytest.fixture(autouse=True)
def _same_random_numbers_each_time() -> None:
    torch.manual_seed(0)


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
    return {
        "llama": lambda: transformers.LlamaConfig(**common),
        "llama_grouped": lambda: transformers.LlamaConfig(**common, **grouped),
        "qwen3": lambda: transformers.Qwen3Config(**common, **grouped, head_dim=8),
        "mistral": lambda: transformers.MistralConfig(**common, **grouped, sliding_window=WINDOW),
        "gpt2": lambda: transformers.GPT2Config(**common | gpt2),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**common),
    }[family]()


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
                model = AutoModelForCausalLM.from_config(_config(family, tokenizer))
            shake(model.parameters(), 0.05)  # biases too: fresh ones are 0 and would hide a bias left out
            model.generation_config = transformers.GenerationConfig(pad_token_id=tokenizer.pad_token_id)
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
