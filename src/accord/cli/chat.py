"""`accord chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from accord.errors import AccordError

if TYPE_CHECKING:
    from accord.recipes.chat import Chat

HELP = """/reset        forget the conversation (not the system prompt)
/save FILE    write the conversation as a row that `accord sft` reads; FILE must be new
/help         this
/quit         leave; Ctrl-D does the same
Ctrl-C ends an answer. A line that ends in \\ goes on in the next."""


def run(command: str, words: list[str]) -> int:
    """Run the command; see `accord.cli.main`."""
    options = _parser().parse_args(words)
    from accord.config import ModelConfig
    from accord.recipes.chat import Chat
    from accord.recipes.generate import GenerateOptions

    sampling = GenerateOptions(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        stop=tuple(options.stop),
        seed=options.seed,
        label=options.label,
    )
    model = ModelConfig(path=options.model, chat_template=options.chat_template)
    chat = Chat(model, sampling, system=options.system, plain=options.plain)
    if sys.stdin.isatty():
        _load_line_editor()
        kind = "it continues your text" if options.plain else "a conversation"
        print(f"{options.model}: {kind}. /help lists the commands, /quit leaves.")
    talk(chat)
    return 0


def talk(chat: Chat) -> None:
    """Read turns from standard input and write answers to standard output, until the end of the input or /quit."""
    while True:
        try:
            text = _read()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D leaves", file=sys.stderr)
            continue
        if not text.strip():
            continue
        word, _, rest = text.strip().partition(" ")
        if word == "/quit":
            return
        if word.startswith("/") and word.removeprefix("/").isalpha():
            _command(chat, word, rest.strip())
        else:
            _answer(chat, text)


def _read() -> str:
    """One turn; a backslash at the end of a line takes the next one along."""
    tty = sys.stdin.isatty()
    lines = [input("> " if tty else "")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("… " if tty else ""))
    return "\n".join(lines)


def _command(chat: Chat, word: str, rest: str) -> None:
    if word == "/reset":
        chat.reset()
        print("(forgotten)")
    elif word == "/save":
        _save(chat, rest)
    else:
        print(HELP if word == "/help" else f"no command {word}\n{HELP}")


def _save(chat: Chat, name: str) -> None:
    messages = [{"role": turn.role, "content": turn.content} for turn in chat.turns]
    if not name or not any(turn.role == "assistant" for turn in chat.turns):
        print("(there is no conversation to save)" if name else "(name the file: /save FILE.jsonl)")
        return
    try:
        with Path(name).expanduser().open("x", encoding="utf-8") as file:
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    except OSError as error:
        print(f"(not saved: {error.strerror}: {name})")
        return
    print(f"(saved: {name})")


def _answer(chat: Chat, text: str) -> None:
    def write(piece: str) -> None:
        print(piece, end="", flush=True)

    try:
        reply = chat.answer(text, write)
    except AccordError as error:
        print(f"({error})")
        return
    print({"stop": "", "length": " …", "interrupted": " (stopped)"}[reply.finish])
    if reply.forgotten:
        print(
            f"(the first {reply.forgotten} turns no longer fit into the model's {chat.context} tokens and were forgotten)"
        )


def _load_line_editor() -> None:
    """Arrow keys and history, where the platform has them."""
    import importlib
    from contextlib import suppress

    with suppress(ImportError):
        importlib.import_module("readline")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="accord chat", description="Talk to a model or a PEFT adapter in the terminal.", epilog="Commands: " + HELP
    )
    parser.add_argument("model", help="folder of a model or adapter, or hub name")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument(
        "--plain", action="store_true", help="no chat template: the model continues each text on its own"
    )
    parser.add_argument("--chat-template", help="for a model without one: chatml, transcript, or a jinja file")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (default: 256)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token (default: 0.7)")
    parser.add_argument("--top-k", type=int, default=0, help="sample among the k likeliest tokens only; 0 = all")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="sample among the likeliest tokens of this probability"
    )
    parser.add_argument("--stop", action="append", default=[], help="a text that ends an answer; may be repeated")
    parser.add_argument("--label", help="for a model of `accord csft`: the label to ask for (default: its best)")
    parser.add_argument("--seed", type=int, default=0, help="same seed and turns, same answers (default: 0)")
    return parser
