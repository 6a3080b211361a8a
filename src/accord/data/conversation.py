"""Conversations: messages checked one by one, and the places where a conversation is cut into prompt and completion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from accord.data.sources import RowError
from accord.types import Message, Text

Turns: TypeAlias = tuple[Message, ...]

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    # ShareGPT's names
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
}
"""Known role names, and the role that each stands for."""

_CHANGES_MEANING = ("tool_calls", "function_call", "weight")
"""Keys of a message that Accord does not read and that must not be dropped without a word."""

_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")


def check_characters(value: Any, what: str) -> None:
    """Look for text that no tokenizer reads: half of a surrogate pair, which JSON can name (`"\\ud83d"`) and UTF-8 cannot hold.

    Args:
        value: a text, or lists and mappings of them; other values pass.
        what: its name, for the error.

    Raises:
        RowError: with the first such character and where it stands.
    """
    pending = [value]
    while pending:  # no recursion: a row may be nested deeper than Python's stack
        part = pending.pop()
        if isinstance(part, Mapping):
            pending += [*part, *part.values()]
        elif isinstance(part, list | tuple):
            pending += part
        elif isinstance(part, str):
            try:
                part.encode()
            except UnicodeEncodeError as error:
                raise RowError(
                    f"{what} holds {part[error.start]!r} at character {error.start + 1}: half of a character (a lone surrogate), "
                    "which is no text"
                ) from error


def parse_text(value: Any, column: str) -> Text:
    """A string as it is; a list of messages, or a single message, as checked messages.

    Raises:
        RowError: any other type, or a message that is not usable.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return parse_messages([value], column)
    if isinstance(value, list | tuple):
        return parse_messages(list(value), column)
    raise RowError(f"column `{column}` is {_kind(value)}; it must be text or a list of messages")


def parse_messages(values: Any, column: str) -> Turns:
    """`{role, content}` or ShareGPT's `{from, value}`, each checked.

    Raises:
        RowError: not a list, an unknown role, content that is not text, or an empty turn (only `system` may be empty).
    """
    if not isinstance(values, list | tuple):
        raise RowError(f"column `{column}` is {_kind(values)}; it must be a list of messages")
    return tuple(_parse_message(value, f"message {index} of `{column}`") for index, value in enumerate(values, 1))


def _parse_message(value: Any, where: str) -> Message:
    if isinstance(value, Message):
        value = {"role": value.role, "content": value.content}
    if not isinstance(value, Mapping):
        raise RowError(f"{where} is {_kind(value)}; it must be an object with `role` and `content`")
    role = value.get("role", value.get("from"))
    content = value.get("content", value.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise RowError(f"{where} has the unknown role {role!r}; known: {', '.join(ROLES)}")
    for key in _CHANGES_MEANING:
        if value.get(key) not in (None, [], {}, "", 1):
            raise RowError(f"{where} has `{key}`, which would be lost: only `role` and `content` are read")
    if not isinstance(content, str):
        raise RowError(f"{where} ({role}) has content that is {_kind(content)}; only text is supported")
    if not content.strip() and ROLES[role] != "system":
        raise RowError(f"{where} ({role}) is empty")
    return Message(ROLES[role], content)


def is_transcript(value: Any) -> bool:
    """Does the text start like an HH-RLHF transcript?"""
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def parse_transcript(text: str, column: str) -> Turns:
    r"""`"\n\nHuman: Hi\n\nAssistant: Hello"` as messages; white space around a turn is not part of it.

    Raises:
        RowError: text before the first turn, or an empty turn.
    """
    head, *parts = _TRANSCRIPT.split(text)
    if head.strip() or not parts:
        raise RowError(f"column `{column}` does not start with a `Human:` or `Assistant:` turn")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [{"role": roles[name], "content": said.strip()} for name, said in zip(parts[::2], parts[1::2], strict=True)]
    return parse_messages(turns, column)


def split_first_answer(turns: Turns) -> tuple[Turns, Turns]:
    """(what comes before the first assistant turn, the rest).

    Raises:
        RowError: there is no assistant turn.
    """
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            return turns[:index], turns[index:]
    raise RowError("the conversation has no assistant turn, so there is nothing to learn")


def split_pair(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """(prompt, chosen, rejected) of two texts that carry their prompt: the prompt is their common beginning.

    Conversations are cut between turns, plain text before a word (the words that both answers start with go to the
    prompt; that leaves the difference of their log-probabilities as it is).

    Raises:
        RowError: no common beginning, or nothing left of one of the two.
    """
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("one of `chosen` and `rejected` is plain text and the other a list of messages")
    cut = 0
    while cut < min(len(chosen), len(rejected)) and chosen[cut] == rejected[cut]:
        cut += 1
    if chosen == rejected:
        raise RowError("`chosen` and `rejected` are the same")
    if isinstance(chosen, str):
        cut = max(chosen.rfind(" ", 0, cut), chosen.rfind("\n", 0, cut), 0)
    if cut == 0:
        raise RowError(
            "`chosen` and `rejected` have no common beginning that could be the prompt: add a column `prompt`"
        )
    if cut in (len(chosen), len(rejected)):
        shorter = "chosen" if cut == len(chosen) else "rejected"
        raise RowError(f"`{shorter}` is the beginning of the other text, so it has no answer of its own")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def align(prompt: Text, *completions: Text) -> tuple[Text, ...]:
    """Bring a prompt and its completions to one kind: all plain text, or all conversations.

    A string prompt before a conversation is one user turn, a string completion after one is one assistant turn.
    """
    if isinstance(prompt, str) and all(isinstance(text, str) for text in completions):
        return (prompt, *completions)
    return (as_turns(prompt, "user"), *(as_turns(text, "assistant") for text in completions))


def as_turns(text: Text, role: str) -> Turns:
    """A conversation as it is; a string as one turn, an empty string as none."""
    if isinstance(text, str):
        return (Message(role, text),) if text else ()
    return text


def check_prompt(prompt: Text) -> None:
    """Raises:
    RowError: an empty prompt, or a conversation in which it is not the model's turn.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise RowError("the prompt is empty")
    elif not any(turn.role != "system" for turn in prompt):
        raise RowError("the prompt is empty: it has no user turn")
    elif prompt[-1].role == "assistant":
        raise RowError("the prompt ends with an assistant turn; it must end where the model is to answer")


def check_completion(completion: Text, column: str) -> None:
    """Raises:
    RowError: an empty completion, or a conversation that does not go from an assistant turn to an assistant turn.
    """
    if isinstance(completion, str):
        if not completion.strip():
            raise RowError(f"`{column}` is empty")
        return
    if not completion:
        raise RowError(f"`{column}` is empty")
    if not any(turn.role == "assistant" for turn in completion):
        raise RowError(f"`{column}` has no assistant turn")
    for turn, place in ((completion[0], "start"), (completion[-1], "end")):
        if turn.role != "assistant":
            raise RowError(f"`{column}` must {place} with an assistant turn, not with {turn.role}")


def _kind(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
