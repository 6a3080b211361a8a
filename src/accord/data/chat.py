"""Records to token ids: what the model reads, and which of its tokens are learnt.

Prompt and completion are rendered to one text and tokenised once: tokenise(prompt) + tokenise(completion) is another
sequence wherever a token straddles the two. Which token belongs to the completion follows from character offsets, and
whether a token is learnt never from comparing it with the padding id, which often is the EOS id.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateSyntaxError

from accord.data import conversation as talk
from accord.data.sources import RowError
from accord.errors import DataError, ModelError
from accord.types import Message, Text

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TrainOn = Literal["completion", "all"]

CHAT_TEMPLATES = {
    "chatml": (
        "{%- for message in messages %}"
        "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
    # The prompt ends before the space, since BPE tokens carry the space in front of their word.
    "transcript": (
        "{%- for message in messages %}"
        "{%- if message['role'] == 'user' %}{{- '\n\nHuman: ' + message['content'] }}"
        "{%- elif message['role'] == 'assistant' %}{{- '\n\nAssistant: ' + message['content'] + eos_token }}"
        "{%- elif message['role'] == 'system' %}{{- message['content'] }}"
        "{%- else %}{{- raise_exception('a transcript has no turn for the role ' + message['role']) }}{%- endif %}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '\n\nAssistant:' }}{%- endif %}"
    ),
}
"""Templates for tokenizers that have none, by the name given as `model.chat_template`."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids, and which of them are learnt (or scored); both of one length. The first token never is a target."""

    input_ids: tuple[int, ...]
    target_mask: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def targets(self) -> tuple[int, ...]:
        """The ids that are learnt, in their order."""
        return tuple(token for token, is_target in zip(self.input_ids, self.target_mask, strict=True) if is_target)


def stop_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None = None) -> frozenset[int]:
    """Ids that end a response: EOS of the tokenizer, and every EOS of the generation config."""
    found = [tokenizer.eos_token_id]
    listed = getattr(generation_config, "eos_token_id", None)
    found += listed if isinstance(listed, list | tuple) else [listed]
    return frozenset(int(token) for token in found if token is not None)


def set_chat_template(tokenizer: PreTrainedTokenizerBase, name_or_path: str) -> None:
    """Give the tokenizer a template of `CHAT_TEMPLATES`, or the jinja file at a path.

    Raises:
        ModelError: neither a known name nor a readable file, or one that is not jinja.
    """
    if name_or_path in CHAT_TEMPLATES:
        # Rendered conversations are tokenised without special tokens: a BOS has to stand in the template.
        bos = "{{- bos_token }}" if _leading_ids(tokenizer) and tokenizer.bos_token else ""
        tokenizer.chat_template = bos + CHAT_TEMPLATES[name_or_path]
        return
    try:
        template = Path(name_or_path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"model.chat_template: {name_or_path!r} is neither {' nor '.join(CHAT_TEMPLATES)}, nor a readable jinja "
            f"file ({error})"
        ) from error
    tokenizer.chat_template = template
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise ModelError(
            f"model.chat_template: {name_or_path}, line {error.lineno}, is no jinja: {error.message}"
        ) from error
    except Exception as error:  # what it says of a conversation is known when it has one
        logger.debug("%s refuses a single turn: %s", name_or_path, error)


def _leading_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Special tokens that the tokenizer puts before a text, usually BOS or nothing."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    pairs = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    return tuple(token for token, _ in takewhile(lambda pair: pair[1], pairs))


class Encoder:
    """Turns prompts and completions into token ids with one tokenizer; `stops` are ids besides EOS that end a turn.

    Raises:
        ModelError: a tokenizer without character offsets (a slow one), or without an EOS token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: frozenset[int] | None = None) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                f"{type(tokenizer).__name__} is a slow tokenizer without character offsets, which are needed to tell "
                "prompt from completion: load one that has a tokenizer.json (AutoTokenizer with use_fast=True)"
            )
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no EOS token, so a model could never learn to stop: set its eos_token")
        self.tokenizer = tokenizer
        self.eos_id = int(tokenizer.eos_token_id)
        self.stop_ids = (stops or frozenset()) | {self.eos_id}
        self.leading_ids = _leading_ids(tokenizer)
        # A copy that adds nothing, cuts nothing, and whose byte-level offsets keep white space: the post-processor of
        # GPT-2 and its kin trims it, and a token of white space would then seem to stand nowhere.
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.post_processor = None
        self._backend.no_truncation()
        self._backend.no_padding()

    def encode_prompt(self, text: Text) -> tuple[int, ...]:
        """Ids to sample a response after: BOS if the tokenizer adds one, and no EOS.

        Raises:
            DataError: a conversation for a tokenizer without a chat template.
            RowError: a conversation that the template refuses.
        """
        if isinstance(text, str):
            return self._with_leading(self._tokenise(text)[0])
        return tuple(self._tokenise(self.prompt_text(text))[0])

    def prompt_text(self, text: Text) -> str:
        """The prompt as the model reads it; a conversation goes through the chat template."""
        return text if isinstance(text, str) else self._render(text, open_turn=True)

    def encode_text(self, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """Ids as the tokenizer by itself makes them of a text, its special tokens included, and their character spans.

        So plain transformers gets the same ids from `tokenizer(text)`. A text that starts with the BOS token gets no other.
        """
        bos = self.tokenizer.bos_token
        specials = not (bos and text.startswith(bos))
        talk.check_characters(text, "the text")
        encoded = self.tokenizer(text, add_special_tokens=specials, return_offsets_mapping=True, verbose=False)
        return tuple(encoded["input_ids"]), [tuple(span) for span in encoded["offset_mapping"]]

    def encode_example(self, prompt: Text, completion: Text, train_on: TrainOn = "completion") -> TokenSequence:
        """Ids of prompt and completion, EOS or the turn's stop token included and learnt.

        Targets are the tokens with at least one character of the completion. In a conversation these are the assistant
        turns of the completion, up to the stop token; what a template writes after the last one (a line break) is left
        out, since a sampled response ends there too. `train_on="all"`: every token but the first.

        Raises:
            DataError: no chat template, or one whose text for the first turns is not the beginning of the whole text.
            RowError: a conversation that the template refuses.
        """
        first, *rest = talk.align(prompt, completion)
        sequence = self._plain(first, rest[0]) if isinstance(first, str) else self._conversation(first, rest[0])
        return all_targets(sequence) if train_on == "all" else sequence

    def encode_steps(self, prompt: Text, steps: Sequence[str], separator: str) -> tuple[TokenSequence, tuple[int, ...]]:
        """Ids of prompt and steps, joined by the separator, as `encode_example` gives them; and where each step ends.

        A step ends at the last token that lies within it and the separator behind it; the last one at the end of the sequence.

        Raises:
            DataError, RowError: as `encode_example`; or a step without a token that reaches into no other step.
        """
        first, answer = talk.align(prompt, separator.join(steps))
        sequence = self.encode_example(prompt, separator.join(steps))
        if isinstance(first, str):
            text, start = first + str(answer), len(first)
        else:
            text = self._render((*first, *answer))  # type: ignore[misc]  # `align` gives one kind
            start = text.rfind(separator.join(steps))
            if start < 0:
                raise RowError("the chat template changes the text of the steps, so their ends cannot be found")
        body, offsets = self._tokenise(text)
        shift = len(self._with_leading(body)) - len(body) if isinstance(first, str) else 0
        ends, edge = [], start
        for number, step in enumerate(steps[:-1], 1):
            before, edge = edge, edge + len(step) + len(separator)
            inside = [index for index, (_, right) in enumerate(offsets) if before < right <= edge]
            if not inside:
                raise RowError(f"step {number} has no token of its own")
            ends.append(inside[-1] + shift)
        return sequence, (*ends, len(sequence) - 1)

    def _plain(self, prompt: str, completion: Any) -> TokenSequence:
        body, offsets = self._tokenise(prompt + completion)
        if not body:
            raise RowError("the row has no tokens")
        ids = self._with_leading(body)
        mask = [False] * (len(ids) - len(body)) + [end > len(prompt) for _, end in offsets]
        if ids[-1] == self.eos_id:  # the row wrote it itself
            return _sequence(ids, mask)
        return _sequence([*ids, self.eos_id], [*mask, True])

    def _conversation(self, prompt: talk.Turns, completion: Any) -> TokenSequence:
        turns: talk.Turns = prompt + completion
        answers = [k for k in range(len(prompt), len(turns)) if turns[k].role == "assistant"]
        if not answers:
            raise RowError("the completion has no assistant turn, so there is nothing to learn")
        # What follows the last answer is neither learnt nor read by anything that is.
        turns = turns[: answers[-1] + 1]
        text = self._render(turns)
        spans = [(self._length(text, turns[:k], True), self._length(text, turns[: k + 1], False)) for k in answers]
        ids, offsets = self._tokenise(text)
        mask = [False] * len(ids)
        for start, end in spans:
            stop = self._last_target(ids, offsets, start, end)
            for index in range(stop + 1):
                mask[index] |= offsets[index][1] > start
        if ids[stop] in self.stop_ids:
            return _sequence(ids[: stop + 1], mask[: stop + 1])
        return _sequence([*ids, self.eos_id], [*mask, True])

    def _last_target(self, ids: list[int], offsets: list[tuple[int, int]], start: int, end: int) -> int:
        """Index of the last stop token of a turn, or of its last token if it has none."""
        inside = [index for index, (left, right) in enumerate(offsets) if right > start and left < end]
        if not inside:
            raise RowError("the chat template writes nothing for an assistant turn of this conversation")
        stops = [index for index in inside if ids[index] in self.stop_ids]
        return (stops or inside)[-1]

    def _length(self, text: str, turns: talk.Turns, open_turn: bool) -> int:
        """Length of the beginning of `text` that these turns are."""
        beginning = self._render(turns, open_turn)
        if not text.startswith(beginning):
            raise DataError(
                "the chat template is not prefix-preserving: the text of the first "
                f"{len(turns)} turns is not the beginning of the whole conversation's text, so it cannot be told which "
                "tokens the assistant wrote. Give another template with model.chat_template"
            )
        return len(beginning)

    def _render(self, turns: talk.Turns, open_turn: bool = False) -> str:
        if not self.tokenizer.chat_template:
            raise DataError(
                f"the rows are conversations and the tokenizer has no chat template: give {' or '.join(CHAT_TEMPLATES)}, "
                "or the path of a jinja file, as model.chat_template of a recipe (--chat-template of accord generate)"
            )
        messages = [_as_dict(turn) for turn in turns]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn)
        except Exception as error:  # a template may raise anything; mostly it refuses an order of roles
            raise RowError(f"the chat template refuses the conversation: {error}") from error
        return str(text)

    def _tokenise(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character spans, no special tokens added.

        Raises:
            RowError: the text holds half a character.
        """
        talk.check_characters(text, "the text")
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def _with_leading(self, ids: list[int]) -> tuple[int, ...]:
        """BOS in front, unless the text itself starts with it."""
        lead = self.leading_ids
        return tuple(ids) if tuple(ids[: len(lead)]) == lead else (*lead, *ids)


def all_targets(sequence: TokenSequence) -> TokenSequence:
    """The same ids, every token but the first learnt."""
    return _sequence(sequence.input_ids, [True] * len(sequence))


def _sequence(ids: list[int] | tuple[int, ...], mask: list[bool]) -> TokenSequence:
    return TokenSequence(tuple(ids), (False, *mask[1:]))


def _as_dict(turn: Message) -> dict[str, str]:
    return {"role": turn.role, "content": turn.content}
