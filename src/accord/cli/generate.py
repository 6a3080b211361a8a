"""`accord generate`: sample from a model or adapter."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from accord.errors import ConfigError


def run(command: str, words: list[str]) -> int:
    """Run the command; see `accord.cli.main`."""
    options = _parser().parse_args(words)
    if not options.prompt and options.prompts is None:
        raise ConfigError('nothing to answer: give --prompt "..." (any number of times) or --prompts FILE.jsonl')
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit must be 1 or more (given: {options.limit})")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)  # now, and not after all the sampling
    from accord.config import DataConfig, ModelConfig
    from accord.data import read_records
    from accord.recipes.generate import GenerateOptions, generate
    from accord.types import Message, Prompt, Text

    texts: list[Text] = list(options.prompt)
    if options.prompts is not None:
        loaded = read_records(DataConfig(path=options.prompts, limit=options.limit), want=Prompt)
        texts += [record.prompt for record in loaded.records]
    if options.chat:
        texts = [(Message("user", text),) if isinstance(text, str) else text for text in texts]
    rollouts = generate(
        ModelConfig(path=options.model),
        texts,
        GenerateOptions(
            samples=options.samples,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            stop=tuple(options.stop),
            seed=options.seed,
            label=options.label,
        ),
    )
    rows = [
        {"prompt": r.prompt_text, "completion": r.response_text, "finish_reason": r.finish_reason} for r in rollouts
    ]
    if options.output is not None:
        options.output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        print(f"{len(rows)} responses: {options.output}")
    else:
        _show(rows)
    return 0


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for row in rows:
        end = "" if row["finish_reason"] == "stop" else " …"
        console.print(Text.assemble((row["prompt"], "dim"), (row["completion"] + end, "bold")))
        console.print()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="accord generate", description="Sample from a model or a PEFT adapter.")
    parser.add_argument("model", help="folder of a model or adapter, or hub name")
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    parser.add_argument("--prompts", help="a file of prompts, of any format that `accord ppo` reads")
    parser.add_argument("--limit", type=int, help="use at most so many rows of --prompts")
    parser.add_argument(
        "--chat", action="store_true", help="send each --prompt as a user's turn through the chat template"
    )
    parser.add_argument("--samples", type=int, default=1, help="responses to each prompt (default: 1)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest response (default: 128)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token (default: 1)")
    parser.add_argument("--top-k", type=int, default=0, help="sample among the k likeliest tokens only; 0 = all")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="sample among the likeliest tokens of this probability"
    )
    parser.add_argument("--stop", action="append", default=[], help="a text that ends a response; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same responses (default: 0)")
    parser.add_argument("--label", help="for a model of `accord csft`: the label to ask for (default: its best)")
    parser.add_argument("--output", type=Path, help="write JSON lines to this file instead of printing")
    return parser
