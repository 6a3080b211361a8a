"""Real texts, pairs and prompts of long-tailed lengths, and the models that the rows need, written once.

Run as a process of its own: python -m contest_speed.data JOB.json
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from base_type import DTYPE
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

ASSISTANT = "\n\nAssistant:"


def main() -> None:
    """See the module."""
    job = json.loads(Path(sys.argv[1]).read_text())
    folder, size, model = Path(job["work"]), job["size"], Path(job["model"])
    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = list(_pairs(Path(job["data"]) / "hh_rlhf_harmless" / "train.jsonl.gz"))
    random.Random(0).shuffle(pairs)
    texts = [pair["prompt"] + pair["chosen"] for pair in pairs]
    longest = size["max_tokens"]

    def tokens(text: str) -> int:
        return len(tokenizer(text).input_ids)

    def first(text: str, count: int) -> str:
        return str(tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids[:count]))

    _write(folder / "texts.jsonl", ({"text": first(text, longest - 8)} for text in texts[: size["texts"]]))
    fitting = [p for p in pairs if max(tokens(p["prompt"] + p[k]) for k in ("chosen", "rejected")) < longest - 8]
    _write(folder / "pairs.jsonl", fitting[: size["pairs"]])
    room = longest - size["new_tokens"] - 8
    prompts = [pair["prompt"] for pair in pairs if tokens(pair["prompt"]) < room]
    for name, count in (
        ("prompts", size["prompts"]),
        ("ppo_prompts", size["ppo_prompts"]),
        ("requests", size["requests"]),
    ):
        _write(folder / f"{name}.jsonl", ({"prompt": prompt} for prompt in prompts[:count]))
    together = "".join(texts)[:400_000]
    long = tokenizer(together, add_special_tokens=False).input_ids
    rows = size["memory_tokens"] // longest
    _write(folder / "full.jsonl", ({"text": tokenizer.decode(part)} for part in _cut(long, longest - 8, rows)))
    for factor in size["growth"]:
        count, length = size["growth_rows"], size["growth_tokens"]
        _write(
            folder / f"rows{factor}.jsonl",
            ({"text": tokenizer.decode(part)} for part in _cut(long, 2 * length, count * factor)),
        )
        _write(
            folder / f"lengths{factor}.jsonl",
            ({"text": tokenizer.decode(part)} for part in _cut(long, length * factor, count)),
        )
    write_endless(model, tokenizer, folder / "endless")
    write_wide(model, size["vocabulary"], folder / "wide")


def _pairs(path: Path) -> Iterator[dict[str, str]]:
    """Prompt and two answers of each transcript pair that differs in its last answer alone."""
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        row = json.loads(line)
        prompt, mark, chosen = row["chosen"].rpartition(ASSISTANT)
        other, _, rejected = row["rejected"].rpartition(ASSISTANT)
        if prompt == other and chosen.strip() and rejected.strip() and chosen != rejected:
            yield {"prompt": prompt + mark, "chosen": chosen, "rejected": rejected}


def _cut(ids: list[int], length: int, count: int) -> list[list[int]]:
    return [ids[n * length : (n + 1) * length] for n in range(count)]


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_endless(model: Path, tokenizer: Any, folder: Path) -> None:
    """The same model with an EOS that is practically never sampled, so that every library draws the same number of tokens."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    added = sorted(tokenizer.get_added_vocab().items(), key=lambda entry: entry[1])
    tokenizer.eos_token = [token for token, _ in added if token not in (tokenizer.eos_token, tokenizer.pad_token)][-1]
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if path.is_file():
            config = json.loads(path.read_text()) | {"eos_token_id": tokenizer.eos_token_id}
            path.write_text(json.dumps(config))


def write_wide(model: Path, vocabulary: int, folder: Path) -> None:
    """A small random Llama with a large vocabulary, and the tokenizer of `model`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=max(vocabulary, 1),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    wide: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=DTYPE)
    wide.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


if __name__ == "__main__":
    main()
