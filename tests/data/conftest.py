"""Tokenizers made on the spot, and the real files where they are at hand."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "the cat sat on the mat and the dog sat on the log",
    "user assistant system Human: Assistant: hello there, how are you today?",
    "I am well, thank you. What is two plus two? It is four.\n\n",
] * 20

Write = Callable[..., str]


def train_tokenizer(
    bos: bool = False, pad_is_eos: bool = False, specials: tuple[str, ...] = (), words: bool = True
) -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's, its post-processor that trims white space from offsets included.

    Without `words`, tokens reach over spaces.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    backend.decoder = decoders.ByteLevel()
    names = ["<s>", "</s>", "<pad>", *specials]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=names, initial_alphabet=alphabet)
    )
    trim = processors.ByteLevel(trim_offsets=True)
    if bos:
        template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
        backend.post_processor = processors.Sequence([trim, template])
    else:
        backend.post_processor = trim
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="<|im_end|>" if "<|im_end|>" in specials else "</s>",
        pad_token="</s>" if pad_is_eos else "<pad>",
    )


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return train_tokenizer


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows (dicts, or lines as they are) as JSON lines and give the path."""

    def write_rows(rows: list[dict[str, Any] | str], name: str = "rows.jsonl") -> str:
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        file = tmp_path / name
        file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return str(file)

    return write_rows


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real files."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("ACCORD_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no real files here: set ACCORD_SHARED_DATA")
    return folder
