"""A conversation with a model: what `accord chat` keeps between two lines of a person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from accord.config import LoraConfig, ModelConfig, PlacementConfig, ReferenceConfig
from accord.data import CHAT_TEMPLATES, set_chat_template
from accord.errors import ConfigError, ModelError
from accord.model.classifiers import refuse_without_words
from accord.model.device import choose_device
from accord.model.loading import load_tokenizer, locate
from accord.recipes.build import check_context, open_model, positions_of
from accord.recipes.generate import GenerateOptions, ask_for
from accord.rollout.collect import response_seed
from accord.rollout.native import NativeEngine
from accord.rollout.protocol import Request, Sampling
from accord.types import Message, Text


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer."""

    text: str
    finish: str
    """`stop`; `length`: cut at `max_new_tokens`; `interrupted`: by Ctrl-C."""
    forgotten: int
    """Turns at the beginning of the history that no longer fit into the model's context, and were not read."""


class TextStream:
    """Token ids in, text out as soon as its characters are whole: no half of a character of several bytes is given.

    Args:
        backend: the tokenizer of the `tokenizers` library.
        stops: tokens that end an answer; they are no text.
        write: told each new piece of text.
    """

    def __init__(self, backend: Tokenizer, stops: frozenset[int], write: Callable[[str], None]) -> None:
        self.backend, self.stops, self.write = backend, stops, write
        self.token_ids: list[int] = []
        self._stream = DecodeStream(skip_special_tokens=True)
        self._said = ""

    def add(self, token: int) -> None:
        """One more token."""
        if token in self.stops:
            return
        self.token_ids.append(token)
        piece = self._stream.step(self.backend, token)
        if piece:
            self._said += piece
            self.write(piece)

    def finish(self, text: str) -> None:
        """Give what is left of the whole text, such as a character that never became whole."""
        if text.startswith(self._said):
            self.write(text[len(self._said) :])


class Chat:
    """A model with the turns so far.

    Args:
        model: a whole model, or an adapter on its base.
        options: sampling; `samples` and `max_sequences` are not read.
        system: what the conversation begins with.
        plain: no template: the model continues the text, and there is no history.
        placement: device.

    Raises:
        ModelError: the model has no chat template, and `plain` was not asked for.
        ConfigError: `plain` with a system prompt, or `max_new_tokens` that no context has room for.
    """

    def __init__(
        self,
        model: ModelConfig,
        options: GenerateOptions,
        system: str | None = None,
        plain: bool = False,
        placement: PlacementConfig | None = None,
    ) -> None:
        if plain and system is not None:
            raise ConfigError(
                "a system prompt needs a chat template, and plain completion uses none; give one of the two"
            )
        refuse_without_words(model.path, locate(model.source), model.trust_remote_code)
        self._ask = ask_for(model, options.label)
        if not plain:
            _check_template(model)
        self.roles, self.encoder = open_model(model, LoraConfig(), choose_device(placement or PlacementConfig()))
        self.roles.add_reference(ReferenceConfig())  # the model as it was saved
        check_context(self.roles, options.max_new_tokens + 1, "max_new_tokens")
        self.engine = NativeEngine(self.roles, max_sequences=1, role="reference")
        self.options, self.plain = options, plain
        self._system = (Message("system", system),) if system else ()
        self.turns: tuple[Message, ...] = self._system
        """The conversation: system prompt, then user and assistant in turn."""
        config = self.roles.model.config.get_text_config()
        positions = positions_of(config)
        self.context = None if positions is None else positions - self.roles.virtual_tokens
        """Most tokens of a prompt and its answer, beside an adapter's virtual ones; `None` without a limit."""
        self._answers = 0

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.turns = self._system

    def answer(self, text: str, write: Callable[[str], None]) -> Reply:
        """Say something, and hear the answer.

        A KeyboardInterrupt ends the answer; what was said so far stays in the history. After an error the history is as it
        was before.

        Args:
            text: the person's turn.
            write: told each new piece of the answer.

        Raises:
            ConfigError: the turn alone is longer than the context.
            DataError, GenerationError: see there.
        """
        prompt_ids, kept, forgotten = self._prompt(text)
        stream = TextStream(self.roles.tokenizer.backend_tokenizer, self.encoder.stop_ids, write)
        seed = response_seed(self.options.seed, self._answers, 0, 0)
        self._answers += 1
        try:
            done = self.engine.generate(
                [Request(prompt_ids, seed)], self._sampling(), on_token=lambda _, token: stream.add(token)
            )
            finish: str = done[0].finish_reason
        except KeyboardInterrupt:
            finish = "interrupted"
        said = str(self.roles.tokenizer.decode(stream.token_ids, skip_special_tokens=True))
        stream.finish(said)
        if not self.plain:
            turns = (*kept, Message("user", text))
            # Most templates refuse a turn without content, so a question without an answer is not remembered.
            self.turns = (*turns, Message("assistant", said)) if said.strip() else kept
        return Reply(said, finish, forgotten)

    def _sampling(self) -> Sampling:
        options = self.options
        return Sampling(
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            stop_ids=self.encoder.stop_ids,
            stop_texts=options.stop,
        )

    def _prompt(self, text: str) -> tuple[tuple[int, ...], tuple[Message, ...], int]:
        """(ids, turns kept, turns forgotten): the oldest exchanges go until prompt and answer fit into the context."""
        room = None if self.context is None else self.context - self.options.max_new_tokens
        history = () if self.plain else self.turns[len(self._system) :]
        for forgotten in range(0, len(history) + 1, 2):
            kept = (*self._system, *history[forgotten:])
            prompt: Text = text if self.plain else (*kept, Message("user", text))
            ids = self.encoder.encode_prompt(self._ask(prompt))
            if room is None or len(ids) <= room:
                return ids, kept, forgotten
        raise ConfigError(
            f"this turn has {len(ids)} tokens with the system prompt, and {room} fit (the model reads {self.context}, of "
            f"which {self.options.max_new_tokens} are kept for the answer): write less, or lower max_new_tokens"
        )


def _check_template(model: ModelConfig) -> None:
    """Before any weight is loaded: is there a chat template?"""
    tokenizer = load_tokenizer(model, locate(model.source))
    if model.chat_template is not None:
        set_chat_template(tokenizer, model.chat_template)
    if not tokenizer.chat_template:
        raise ModelError(
            f"{model.path} has no chat template, so it was hardly trained to chat. Continue text with it: --plain. If it was "
            f"trained on conversations, name how they were written: --chat-template {', '.join(CHAT_TEMPLATES)} or a jinja file"
        )
