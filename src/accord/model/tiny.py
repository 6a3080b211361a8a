"""A tiny Llama and its tokenizer, made on the spot: the base that `accord quickstart` pre-trains.

Both are ordinary Hugging Face objects: `AutoModelForCausalLM` and `AutoTokenizer` load what `write_tiny_model` writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from accord.errors import DataError, ModelError
from accord.model.loading import quiet_progress

START, END, PAD = "<|start|>", "<|endoftext|>", "<|pad|>"
"""Begins every text, so that its first word can be learnt; ends it; never a target."""
MAX_POSITIONS = 512
"""Longest sequence, in tokens."""


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE learnt from `texts`: any text can be encoded and is given back byte for byte.

    Encoding puts `<|start|>` first (unless `add_special_tokens=False`) and nothing last; `decode` with
    `skip_special_tokens=True` inverts it. The same texts give the same tokenizer. `vocab_size` counts the 256 bytes and
    the 3 special tokens; fewer are learnt when the texts have no more pairs to merge.

    Raises `DataError` without texts and `ModelError` when the vocabulary cannot hold the bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = [PAD, START, END]
    if vocab_size < len(alphabet) + len(specials):
        raise ModelError(
            f"vocab_size={vocab_size} cannot hold {len(alphabet)} bytes and {len(specials)} special tokens."
        )
    texts = list(texts)
    if not any(texts):
        raise DataError("A tokenizer needs texts to learn from; none, or only empty ones, were given.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A $B", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def create_model(
    tokenizer: PreTrainedTokenizerFast, hidden: int = 192, layers: int = 2, heads: int = 6, seed: int = 0
) -> LlamaForCausalLM:
    """A Llama with fresh fp32 weights on the CPU: `layers` blocks of `heads` heads, `hidden` features, tied embeddings.

    About `12 · layers · hidden² + vocabulary · hidden` parameters. The weights depend on `seed` alone; the global
    random state is left as it was. Raises `ModelError` when the heads do not divide the features into even parts.
    """
    if heads < 1 or hidden % (2 * heads):
        raise ModelError(
            f"hidden={hidden} does not divide into heads={heads} of even size, which rotary positions need. "
            f"Choose hidden as a multiple of {2 * max(heads, 1)}."
        )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        # A gated block has three matrices: 8/3 of the width costs what a plain block of 4 times the width would.
        intermediate_size=-(-hidden * 8 // 3 // 16) * 16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def write_tiny_model(
    folder: str | Path,
    texts: Iterable[str],
    seed: int = 0,
    *,
    vocab_size: int = 1024,
    hidden: int = 192,
    layers: int = 2,
    heads: int = 6,
) -> Path:
    """Write an untrained model (safetensors) and the tokenizer of `texts` into `folder`, and return it.

    Raises as `train_tokenizer` and `create_model` do.
    """
    folder = Path(folder)
    tokenizer = train_tokenizer(texts, vocab_size)
    with quiet_progress():
        create_model(tokenizer, hidden, layers, heads, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
