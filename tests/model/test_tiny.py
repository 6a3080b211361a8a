"""The tiny model and its tokenizer are ordinary Hugging Face objects, made deterministically."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from accord.errors import DataError, ModelError
from accord.model.tiny import create_model, train_tokenizer, write_tiny_model

TEXTS = [f"Review {i}: the plot is gripping, but the ending is {word}." for i, word in enumerate(["slow", "odd"] * 40)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 400)


@pytest.mark.parametrize("text", [TEXTS[0], "don't , stop .  two  spaces\n\ttab", "Ünïcode 日本 🎬", " leading", ""])
def test_decoding_inverts_encoding(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_prompt_and_completion_are_tokenised_as_their_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt, completion = "Review 3:", " the plot is gripping."
    apart = tokenizer.encode(prompt) + tokenizer.encode(completion, add_special_tokens=False)
    assert apart == tokenizer.encode(prompt + completion)


def test_special_tokens_are_three_and_distinct(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|start|>", "<|endoftext|>", "<|pad|>")


def test_same_texts_same_tokenizer_same_seed_same_weights(tokenizer: PreTrainedTokenizerFast) -> None:
    assert train_tokenizer(TEXTS, 400).get_vocab() == tokenizer.get_vocab()
    state = torch.random.get_rng_state()
    first, again, other = (create_model(tokenizer, hidden=32, layers=1, heads=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state), "the global random state is left alone"
    weight = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


def test_default_size_is_one_to_two_million(tokenizer: PreTrainedTokenizerFast) -> None:
    model = create_model(tokenizer)
    assert 0.7e6 < model.num_parameters() < 2e6
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.dtype == torch.float32


def test_what_is_written_loads_in_plain_transformers_with_the_same_logits(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "base", TEXTS, 3, vocab_size=400, hidden=32, layers=2, heads=2)
    assert (folder / "model.safetensors").is_file()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ours = train_tokenizer(TEXTS, 400)
    fresh = create_model(ours, hidden=32, layers=2, heads=2, seed=3).eval()
    assert tokenizer.encode(TEXTS[1]) == ours.encode(TEXTS[1])
    assert tokenizer.decode(tokenizer.encode(TEXTS[1]), skip_special_tokens=True) == TEXTS[1]
    ids = torch.tensor([ours.encode(TEXTS[1])])
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, fresh(ids).logits)
    for holder in (model.config, model.generation_config):
        assert holder.bos_token_id == tokenizer.bos_token_id
        assert holder.eos_token_id == tokenizer.eos_token_id
        assert holder.pad_token_id == tokenizer.pad_token_id


def test_bad_arguments_are_named(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="needs texts to learn from"):
        train_tokenizer(["", ""])
    with pytest.raises(ModelError, match="vocab_size=100 cannot hold 256 bytes"):
        train_tokenizer(TEXTS, 100)
    with pytest.raises(ModelError, match="hidden=30 does not divide into heads=4"):
        create_model(tokenizer, hidden=30, heads=4)
