"""`accord generate`: sample from a model or adapter."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.cli.paths import try_file, user_path
from accord.errors import ConfigError, RunError

if TYPE_CHECKING:
    from accord.types import Rollout


def run(command: str, words: list[str]) -> int:
    """Run the command; see `accord.cli.main`."""
    options = _parser().parse_args(words)
    if not options.prompt and options.prompts is None:
        raise ConfigError('nothing to answer: give --prompt "..." (any number of times) or --prompts FILE.jsonl')
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit must be 1 or more (given: {options.limit})")
    if options.limit is not None and options.prompts is None:
        raise ConfigError("--limit counts rows of --prompts, and there are none: leave it out")
    if options.output is not None:
        try_file(options.output)  # now, and not after all the sampling
    if options.best_of is not None and not options.reward:
        raise ConfigError("--best-of needs a --reward to tell which response is best")
    if options.best_of is not None and options.best_of < 1:
        raise ConfigError(f"--best-of must be 1 or more (given: {options.best_of})")
    if options.best_of is not None and options.samples != 1:
        raise ConfigError("--samples and --best-of both say how many responses to sample; give one of the two")
    if options.best_of is not None and options.best_of > 1 and options.temperature == 0:
        raise ConfigError(f"at temperature 0 all {options.best_of} responses would be the same: raise --temperature")
    if options.all and options.best_of is None:
        raise ConfigError("--all shows what --best-of chose from; give --best-of N, or --samples N alone")
    from accord.config import ModelConfig
    from accord.recipes.generate import GenerateOptions, generate
    from accord.rollout.select import best_of, best_of_kl_bound

    rollouts = generate(
        ModelConfig(path=options.model, chat_template=options.chat_template),
        _prompts(options),
        GenerateOptions(
            samples=options.samples if options.best_of is None else options.best_of,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            stop=tuple(options.stop),
            seed=options.seed,
            label=options.label,
        ),
        rewards=[_reward_term(text) for text in options.reward],
    )
    if options.best_of is not None:
        best = {id(rollout) for rollout in best_of(rollouts)}
        rows = [
            _row(r) | ({"best": id(r) in best} if options.all else {}) for r in rollouts if options.all or id(r) in best
        ]
    else:
        rows = [_row(rollout) for rollout in rollouts]
    if options.output is not None:
        _write(rows, options.output)
        print(f"{len(rows)} responses: {options.output}")
    else:
        _show(rows)
    if options.best_of is not None:
        bound = best_of_kl_bound(options.best_of)
        print(
            f"best of {options.best_of}: at most {bound:.2f} nats of KL from the distribution sampled (log n - (n - 1)/n)"
        )
    return 0


def _write(rows: list[dict[str, Any]], file: Path) -> None:
    """Write JSON lines to a new file; if that has become impossible meanwhile, print them instead, so that nothing is lost.

    Raises:
        RunError: they were printed.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        with file.open("w" if file.exists() and not file.is_file() else "x", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        print(text, end="")
        raise RunError(f"{file} could not be written: {error.strerror}; the responses were printed instead") from error


def _prompts(options: argparse.Namespace) -> list[Any]:
    from accord.config import DataConfig
    from accord.data import read_records
    from accord.types import Message, Prompt

    prompts = [Prompt(text) for text in options.prompt]
    if options.prompts is not None:
        loaded = read_records(DataConfig(path=options.prompts, limit=options.limit), want=Prompt, go_on="")
        prompts += [record for record in loaded.records if isinstance(record, Prompt)]
    if options.chat:
        prompts = [
            Prompt((Message("user", prompt.prompt),), prompt.columns) if isinstance(prompt.prompt, str) else prompt
            for prompt in prompts
        ]
    return prompts


def _reward_term(text: str) -> Any:
    """`{model: PATH, weight: 0.5}` as a mapping, anything else as the path or function that it names."""
    if not text.lstrip().startswith("{"):
        return text
    from accord.config import parse_overrides

    (term,) = parse_overrides(["--reward", text])["reward"]
    return term


def _row(rollout: Rollout) -> dict[str, Any]:
    row = {
        "prompt": rollout.prompt_text,
        "completion": rollout.response_text,
        "finish_reason": rollout.finish_reason,
    }
    return row if rollout.score is None else row | {"score": rollout.total_score, "scores": dict(rollout.scores)}


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for row in rows:
        end = "" if row["finish_reason"] == "stop" else " …"
        console.print(Text.assemble((row["prompt"], "dim"), (row["completion"] + end, "bold")))
        if "score" in row:
            parts = [f"{name} {value:.3f}" for name, value in row["scores"].items() if value is not None]
            told = f"score {row['score']:.3f}" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")
            console.print(Text.assemble((told, "cyan"), ("  best", "bold green") if row.get("best") else ""))
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
    parser.add_argument("--chat-template", help="for a model without one: chatml, transcript, or a jinja file")
    parser.add_argument("--samples", type=int, default=1, help="responses to each prompt (default: 1)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest response (default: 128)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token (default: 1)")
    parser.add_argument("--top-k", type=int, default=0, help="sample among the k likeliest tokens only; 0 = all")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="sample among the likeliest tokens of this probability"
    )
    parser.add_argument("--stop", action="append", default=[], help="a text that ends a response; may be repeated")
    parser.add_argument(
        "--reward",
        action="append",
        default=[],
        help="score responses: FILE.py:NAME, a reward model's path, or '{model: PATH, weight: 0.5}'; may be repeated",
    )
    parser.add_argument("--best-of", type=int, help="sample so many responses to each prompt, and give the best")
    parser.add_argument("--all", action="store_true", help="with --best-of: give all of them, the best one marked")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same responses (default: 0)")
    parser.add_argument("--label", help="for a model of `accord csft`: the label to ask for (default: its best)")
    parser.add_argument("--output", type=user_path, help="write JSON lines to this new file instead of printing")
    return parser
