from __future__ import annotations

import copy
from pathlib import Path

import pytest
from transformers import GenerationConfig

from accord.data.chat import CHAT_TEMPLATES, Encoder, set_chat_template, stop_ids
from accord.data.sources import RowError
from accord.errors import DataError, ModelError
from accord.types import Message

CHATML = ("<|im_start|>", "<|im_end|>")
SYSTEM, USER, REPLY = Message("system", "be kind"), Message("user", "hello there"), Message("assistant", "how are you")
USER2, REPLY2 = Message("user", "the cat"), Message("assistant", "sat on the mat")


@pytest.fixture
def chat_encoder(make_tokenizer):
    def make(template: str, **kwargs) -> Encoder:
        tokenizer = make_tokenizer(**kwargs)
        set_chat_template(tokenizer, template)
        return Encoder(tokenizer)

    return make


def decode(encoder: Encoder, ids) -> str:
    return encoder.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def target_runs(encoder: Encoder, sequence) -> list[str]:
    """The text of each unbroken run of targets."""
    runs: list[list[int]] = []
    for before, is_target, token in zip(
        (False, *sequence.target_mask), sequence.target_mask, sequence.input_ids, strict=False
    ):
        if is_target and not before:
            runs.append([])
        if is_target:
            runs[-1].append(token)
    return [decode(encoder, run) for run in runs]


def test_plain_completion_and_eos_are_learnt_the_prompt_is_not(plain_tokenizer):
    encoder = Encoder(plain_tokenizer)
    sequence = encoder.encode_example("the cat", " sat on the mat")
    assert decode(encoder, sequence.input_ids) == "the cat sat on the mat</s>"
    assert target_runs(encoder, sequence) == [" sat on the mat</s>"]
    assert sequence.input_ids[:-1] == tuple(plain_tokenizer("the cat sat on the mat")["input_ids"])


def test_bos_comes_first_once_and_no_eos_follows_a_prompt(make_tokenizer):
    encoder = Encoder(make_tokenizer(bos=True))
    prompt = encoder.encode_prompt("the cat")
    assert decode(encoder, prompt) == "<s>the cat"
    assert encoder.encode_prompt("<s>the cat") == prompt
    sequence = encoder.encode_example("the cat", " sat")
    assert sequence.input_ids[: len(prompt)] == prompt and target_runs(encoder, sequence) == [" sat</s>"]


def test_stop_token_is_learnt_when_eos_is_pad(make_tokenizer):
    encoder = Encoder(make_tokenizer(pad_is_eos=True))
    assert encoder.tokenizer.pad_token_id == encoder.tokenizer.eos_token_id
    sequence = encoder.encode_example("the cat", " sat")
    assert sequence.input_ids[-1] == encoder.eos_id and sequence.target_mask[-1]
    assert encoder.encode_example("the cat", " sat</s>") == sequence  # written out, it is not doubled


@pytest.mark.parametrize(
    ("prompt", "completion"), [("the c", "at sat"), ("the", " "), ("the ", "cat"), ("the\n", "\n")]
)
def test_a_token_that_straddles_the_boundary_is_learnt(plain_tokenizer, prompt, completion):
    encoder = Encoder(plain_tokenizer)
    sequence = encoder.encode_example(prompt, completion)
    whole = tuple(plain_tokenizer(prompt + completion)["input_ids"])
    assert sequence.input_ids == (*whole, encoder.eos_id)
    (learnt,) = target_runs(encoder, sequence)
    assert (prompt + completion + "</s>").endswith(learnt) and learnt.endswith(completion + "</s>")
    # No more than the one straddling token reaches into the prompt.
    tail = sequence.targets[1:]
    assert len(decode(encoder, tail)) <= len(completion + "</s>")
    if prompt == "the c":
        assert learnt == " cat sat</s>" and tuple(whole) != tuple(
            plain_tokenizer(prompt)["input_ids"] + plain_tokenizer(completion)["input_ids"]
        )


@pytest.mark.parametrize("words", [True, False])
def test_wherever_a_text_is_cut_the_targets_are_the_least_tokens_that_hold_the_completion(make_tokenizer, words):
    """Also for tokens that end in a space, whose offsets a post-processor like GPT-2's cuts short."""
    encoder = Encoder(make_tokenizer(words=words))
    text = "the dog  sat on \n the log, thank you. "
    whole = encoder.encode_prompt(text)
    spans = [len(decode(encoder, whole[: n + 1])) for n in range(len(whole))]
    for cut in range(1, len(text)):
        sequence = encoder.encode_example(text[:cut], text[cut:])
        assert sequence.input_ids == (*whole, encoder.eos_id)
        assert sequence.target_mask == (False, *[end > cut for end in spans[1:]], True)


def test_characters_of_several_tokens(plain_tokenizer):
    encoder = Encoder(plain_tokenizer)
    assert target_runs(encoder, encoder.encode_example("é", "ö")) == ["ö</s>"]


@pytest.mark.parametrize("bos", [False, True])
def test_text_without_a_prompt_is_learnt_but_for_the_first_token(make_tokenizer, bos):
    encoder = Encoder(make_tokenizer(bos=bos))
    sequence = encoder.encode_example("", "the cat sat")
    assert sequence.target_mask == (False, *[True] * (len(sequence) - 1))
    learnt = decode(encoder, sequence.targets)
    assert learnt == ("the cat sat</s>" if bos else " cat sat</s>")


def test_train_on_all(plain_tokenizer):
    sequence = Encoder(plain_tokenizer).encode_example("the cat", " sat", train_on="all")
    assert sequence.target_mask == (False, *[True] * (len(sequence) - 1))


def test_chatml_learns_every_answer_with_its_stop_token_and_nothing_else(chat_encoder):
    encoder = chat_encoder("chatml", specials=CHATML, pad_is_eos=False)
    assert decode(encoder, [encoder.eos_id]) == "<|im_end|>"
    sequence = encoder.encode_example((SYSTEM, USER), (REPLY, USER2, REPLY2))
    assert target_runs(encoder, sequence) == ["how are you<|im_end|>", "sat on the mat<|im_end|>"]
    assert decode(encoder, sequence.input_ids).endswith("sat on the mat<|im_end|>")
    assert sequence.input_ids[: len(encoder.encode_prompt((SYSTEM, USER)))] == encoder.encode_prompt((SYSTEM, USER))


def test_answers_of_the_prompt_are_not_learnt(chat_encoder):
    encoder = chat_encoder("chatml", specials=CHATML)
    sequence = encoder.encode_example((USER, REPLY, USER2), (REPLY2,))
    assert target_runs(encoder, sequence) == ["sat on the mat<|im_end|>"]
    everything = encoder.encode_example((USER, REPLY, USER2), (REPLY2,), train_on="all")
    assert everything.input_ids == sequence.input_ids and all(everything.target_mask[1:])


@pytest.mark.parametrize("bos", [False, True])
def test_transcript_learns_every_answer_with_eos(chat_encoder, bos):
    encoder = chat_encoder("transcript", bos=bos, pad_is_eos=True)
    sequence = encoder.encode_example((USER,), (REPLY, USER2, REPLY2))
    assert target_runs(encoder, sequence) == [" how are you</s>", " sat on the mat</s>"]
    start = "<s>" if bos else ""
    assert decode(encoder, encoder.encode_prompt((USER,))) == start + "\n\nHuman: hello there\n\nAssistant:"
    assert decode(encoder, sequence.input_ids) == (
        start
        + "\n\nHuman: hello there\n\nAssistant: how are you</s>\n\nHuman: the cat\n\nAssistant: sat on the mat</s>"
    )


def test_template_without_a_stop_token_gets_eos_after_the_last_answer(chat_encoder):
    encoder = chat_encoder("chatml")  # its <|im_end|> is mere text here
    sequence = encoder.encode_example((USER,), (REPLY, USER2, REPLY2))
    assert target_runs(encoder, sequence) == ["how are you<|im_end|>\n", "sat on the mat<|im_end|>\n</s>"]


def test_any_stop_id_ends_a_turn(make_tokenizer):
    tokenizer = make_tokenizer(specials=("<|eot|>",))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ':' + m.content + '<|eot|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    eot = tokenizer.convert_tokens_to_ids("<|eot|>")
    encoder = Encoder(tokenizer, stop_ids(tokenizer, GenerationConfig(eos_token_id=[eot])))
    assert encoder.stop_ids == {eot, tokenizer.eos_token_id}
    assert target_runs(encoder, encoder.encode_example((USER,), (REPLY,))) == ["how are you<|eot|>"]


def test_string_answer_to_a_conversation_is_one_assistant_turn(chat_encoder):
    encoder = chat_encoder("transcript")
    assert encoder.encode_example((USER,), "how are you") == encoder.encode_example((USER,), (REPLY,))
    assert encoder.encode_example("hello there", (REPLY,)) == encoder.encode_example((USER,), (REPLY,))


def test_conversation_without_a_template_says_what_to_set(plain_tokenizer):
    with pytest.raises(DataError, match=r"model\.chat_template"):
        Encoder(plain_tokenizer).encode_prompt((USER,))


def test_template_that_rewrites_the_past_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="not prefix-preserving"):
        Encoder(tokenizer).encode_example((USER,), (REPLY, USER2, REPLY2))


def test_template_that_refuses_a_row_makes_a_row_error(chat_encoder):
    with pytest.raises(RowError, match="no turn for the role tool"):
        chat_encoder("transcript").encode_prompt((USER, Message("tool", "4")))


def test_half_a_character_is_an_error_of_the_row(plain_tokenizer):
    encoder = Encoder(plain_tokenizer)
    for encode in (
        lambda: encoder.encode_prompt("the \ud83d"),
        lambda: encoder.encode_example("the cat", " sat \ud83d"),
        lambda: encoder.encode_text("the \ud83d"),
    ):
        with pytest.raises(RowError, match=r"'\\ud83d' at character \d+: half of a character"):
            encode()


def test_template_from_a_file_and_unknown_name(make_tokenizer, tmp_path, plain_tokenizer):
    (tmp_path / "t.jinja").write_text(CHAT_TEMPLATES["chatml"])
    tokenizer = make_tokenizer()
    set_chat_template(tokenizer, str(tmp_path / "t.jinja"))
    assert tokenizer.chat_template == CHAT_TEMPLATES["chatml"]
    with pytest.raises(ModelError, match=r"'chatmel' is neither chatml nor transcript"):
        set_chat_template(plain_tokenizer, "chatmel")


def test_tokenizers_that_cannot_do_it_are_refused(make_tokenizer, plain_tokenizer):
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="slow tokenizer"):
        Encoder(Slow())
    without_eos = make_tokenizer()
    without_eos.eos_token = None
    with pytest.raises(ModelError, match="no EOS"):
        Encoder(without_eos)


def test_the_callers_tokenizer_is_left_alone(make_tokenizer):
    tokenizer = make_tokenizer(bos=True)
    before = tokenizer.backend_tokenizer.to_str()
    Encoder(tokenizer).encode_example("the", " cat")
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer("the")["input_ids"][0] == tokenizer.bos_token_id


def test_real_transcripts_learn_exactly_the_answers(chat_encoder, shared):
    from accord.config.data import DataConfig
    from accord.data.formats import read_records

    encoder = chat_encoder("transcript", pad_is_eos=True)
    config = DataConfig(path=str(shared / "hh_rlhf_harmless"), limit=100, on_bad_row="skip")
    for pair in read_records(config).records:
        (learnt,) = target_runs(encoder, encoder.encode_example(pair.prompt, pair.chosen))
        assert learnt == f" {pair.chosen[-1].content}</s>"


def test_a_template_that_is_no_jinja_is_known_at_once(tokenizer, tmp_path: Path):
    file = tmp_path / "broken.jinja"
    file.write_text("{% for message in messages %}\n{{ message['content'] }\n{% endfor %}")
    with pytest.raises(ModelError, match=r"broken.jinja, line 2, is no jinja: "):
        set_chat_template(copy.deepcopy(tokenizer), str(file))


def test_a_template_may_refuse_a_single_turn(tokenizer, tmp_path: Path):
    file = tmp_path / "strict.jinja"
    file.write_text(
        "{{ raise_exception('begin with a system turn') if messages[0]['role'] != 'system' }}{% generation %}{% endgeneration %}"
    )
    given = copy.deepcopy(tokenizer)
    set_chat_template(given, str(file))
    assert given.chat_template == file.read_text()
