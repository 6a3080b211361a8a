"""A conversation: history, streaming, context, interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from accord.config import ModelConfig, PromptConfig
from accord.errors import ConfigError, ModelError
from accord.model.export import save_policy
from accord.model.roles import Roles
from accord.recipes.chat import Chat, TextStream
from accord.recipes.generate import GenerateOptions
from accord.types import Message

OPTIONS = GenerateOptions(max_new_tokens=8, temperature=0.9)


@pytest.fixture
def talker(base: Path, tmp_path: Path) -> ModelConfig:
    """A tiny model, and a template that its tokenizer can write; the end of each turn is the stop token."""
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return ModelConfig(path=str(base), chat_template=str(template))


def chat_of(model: ModelConfig, **more) -> Chat:
    return Chat(model, more.pop("options", OPTIONS), **more)


def test_each_turn_is_read_with_all_before_it(talker, monkeypatch):
    chat = chat_of(talker, system="be kind")
    asked = []
    original = chat.engine.generate
    monkeypatch.setattr(
        chat.engine, "generate", lambda requests, *a, **k: asked.append(requests) or original(requests, *a, **k)
    )
    written: list[str] = []
    first = chat.answer("the film", written.append)
    assert "".join(written) == first.text and first.forgotten == 0
    assert chat.turns == (Message("system", "be kind"), Message("user", "the film"), Message("assistant", first.text))
    chat.answer("a cast", written.append)
    read = chat.roles.tokenizer.decode(asked[1][0].prompt_ids)
    eos = chat.roles.tokenizer.eos_token
    assert read == (f"system: be kind{eos}user: the film{eos}assistant: {first.text}{eos}user: a cast{eos}assistant:")
    chat.reset()
    assert chat.turns == (Message("system", "be kind"),)


def test_same_seed_same_answers(talker):
    def said(seed: int) -> list[str]:
        chat = chat_of(talker, options=GenerateOptions(max_new_tokens=8, seed=seed))
        return [chat.answer("the film", lambda piece: None).text for _ in range(2)]

    assert said(0) == said(0) != said(1)


def speak(chat: Chat, monkeypatch: pytest.MonkeyPatch, *tokens: int) -> None:
    """Make the model say these tokens."""
    said = iter(tokens)
    monkeypatch.setattr(
        "accord.rollout.drawing.sample_tokens", lambda *_: (torch.tensor([next(said)]), torch.tensor([-1.0]))
    )


def test_characters_come_whole_and_the_stop_token_does_not(talker, monkeypatch):
    text = "né 日本 😀!"
    chat = chat_of(talker, options=GenerateOptions(max_new_tokens=64))
    ids = chat.roles.tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) > len(text), "characters of several tokens"
    speak(chat, monkeypatch, *ids, chat.roles.tokenizer.eos_token_id)
    written: list[str] = []
    reply = chat.answer("the film", written.append)
    assert (reply.text, reply.finish) == (text, "stop") and "".join(written) == text
    assert len(written) > 3 and not any("\ufffd" in piece for piece in written)


def test_a_stop_token_that_is_no_special_token_is_hidden_too(talker, monkeypatch):
    chat = chat_of(talker)
    (bang,) = chat.roles.tokenizer.encode("!", add_special_tokens=False)
    chat.encoder.stop_ids |= {bang}
    speak(chat, monkeypatch, *chat.roles.tokenizer.encode("ab!", add_special_tokens=False))
    written: list[str] = []
    reply = chat.answer("the film", written.append)
    assert (reply.text, reply.finish, "".join(written)) == ("ab", "stop", "ab")


def test_a_character_that_never_became_whole_is_shown_at_the_end(talker, monkeypatch):
    chat = chat_of(talker, options=GenerateOptions(max_new_tokens=3))
    half = chat.roles.tokenizer.encode("ab😀", add_special_tokens=False)[:3]
    speak(chat, monkeypatch, *half)
    written: list[str] = []
    reply = chat.answer("the film", written.append)
    assert reply.finish == "length" and "".join(written) == reply.text and reply.text.startswith("ab\ufffd")


def test_a_stream_equals_the_whole_text_whatever_the_tokens(talker):
    """Random tokens: broken characters, special tokens, white space."""
    tokenizer = chat_of(talker).roles.tokenizer
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        ids = torch.randint(0, len(tokenizer), (30,), generator=generator).tolist()
        written: list[str] = []
        stream = TextStream(tokenizer.backend_tokenizer, frozenset(), written.append)
        for token in ids:
            stream.add(token)
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        stream.finish(whole)
        assert "".join(written) == whole


def test_an_interrupted_answer_stays_and_the_chat_goes_on(talker, monkeypatch):
    chat = chat_of(talker, options=GenerateOptions(max_new_tokens=64))
    ids = chat.roles.tokenizer.encode("good and fine and odd", add_special_tokens=False)
    written: list[str] = []

    def write(piece: str) -> None:
        written.append(piece)
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        speak(chat, patch, *ids)
        reply = chat.answer("the film", write)
    assert reply.finish == "interrupted" and reply.text == "".join(written[:2]) != ""
    assert chat.turns[-1] == Message("assistant", reply.text)
    assert chat.answer("a cast", lambda piece: None).finish in ("stop", "length")
    assert len(chat.turns) == 4


def test_the_oldest_exchanges_go_when_the_context_is_full(talker):
    chat = chat_of(talker, system="be kind", options=GenerateOptions(max_new_tokens=20, temperature=0.5))
    assert chat.context == 128
    forgotten = 0
    for turn in range(6):
        reply = chat.answer(f"the film {turn} was good", lambda piece: None)
        forgotten += reply.forgotten
        asked = [m.content for m in chat.turns if m.role == "user"]
        assert chat.turns[0].role == "system" and asked[-1] == f"the film {turn} was good"
        assert asked == [f"the film {k} was good" for k in range(turn + 1 - len(asked), turn + 1)]
        assert forgotten == 2 * (turn + 1 - len(asked))
    assert forgotten > 0
    before = chat.turns
    with pytest.raises(ConfigError, match="write less, or lower max_new_tokens"):
        chat.answer("the film was good " * 40, lambda piece: None)
    assert chat.turns == before


def test_virtual_tokens_take_room_too(talker, model_folder, tokenizer, tmp_path: Path):
    small = tmp_path / "small"
    config = AutoConfig.from_pretrained(model_folder("gpt2"), n_positions=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(small)
    tokenizer.save_pretrained(small)
    roles = Roles(ModelConfig(path=str(small)), PromptConfig(tokens=8), torch.device("cpu"))
    roles.add_policy()
    save_policy(roles, tmp_path / "adapter")
    model = ModelConfig(path=str(tmp_path / "adapter"))
    chat = chat_of(model, plain=True)
    assert chat.context == 24
    assert len(chat.encoder.encode_prompt("!" * 15)) == 16, "BOS is one"
    chat.answer("!" * 15, lambda piece: None)
    with pytest.raises(ConfigError, match=r"this turn has 17 tokens .*, and 16 fit \(the model reads 24"):
        chat.answer("!" * 16, lambda piece: None)


def test_plain_completion_has_no_history(base):
    chat = chat_of(ModelConfig(path=str(base)), plain=True)
    reply = chat.answer("the film was", lambda piece: None)
    assert reply.text and chat.turns == ()


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({}, ModelError, "--plain.*--chat-template chatml, transcript"),
        ({"plain": True, "system": "x"}, ConfigError, "system prompt needs a chat template"),
        ({"plain": True, "options": GenerateOptions(max_new_tokens=500)}, ConfigError, "reads at most 128"),
    ],
)
def test_what_cannot_chat_says_what_to_do(base, more, error, said):
    with pytest.raises(error, match=said):
        chat_of(ModelConfig(path=str(base)), **more)


def test_no_weights_are_loaded_for_a_model_that_cannot_chat(base, monkeypatch):
    monkeypatch.setattr("accord.recipes.chat.open_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ModelError, match="no chat template"):
        chat_of(ModelConfig(path=str(base)))
