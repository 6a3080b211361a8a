from __future__ import annotations

import pytest

from accord.config.data import DataConfig
from accord.data.chat import Encoder, set_chat_template
from accord.data.encode import encode_examples, encode_labelled, encode_pairs, encode_prompts
from accord.data.formats import Loaded
from accord.errors import DataError
from accord.types import Example, LabelledResponse, Message, PreferencePair, Prompt

WORDS = " cat sat on the mat"


@pytest.fixture(scope="session")
def encoder(make_tokenizer) -> Encoder:
    return Encoder(make_tokenizer(bos=True))


def loaded(*records) -> Loaded:
    return Loaded("a.jsonl", "any", list(records), [f"a.jsonl:{n}" for n, _ in enumerate(records, 1)])


def config(**values) -> DataConfig:
    return DataConfig(path="a.jsonl", **values)


def test_examples_within_the_limit_are_those_of_the_encoder(encoder):
    result = encode_examples(loaded(Example("the", WORDS)), encoder, config())
    assert result.items == [encoder.encode_example("the", WORDS)] and result.origins == ["a.jsonl:1"]
    (everything,) = encode_examples(loaded(Example("the", WORDS)), encoder, config(train_on="all")).items
    assert everything == encoder.encode_example("the", WORDS, "all")


def test_long_rows_stop_with_both_cures_or_are_skipped_with_origin(encoder):
    rows = loaded(Example("the", WORDS), Example("the", WORDS * 20))
    length = len(encoder.encode_example("the", WORDS * 20))
    with pytest.raises(DataError) as caught:
        encode_examples(rows, encoder, config(max_tokens=32))
    message = str(caught.value)
    assert f"a.jsonl:2: the row has {length} tokens, limit 32 (data.max_tokens)" in message
    assert all(cure in message for cure in ("raise the limit", "data.too_long: truncate", "data.on_bad_row: skip"))
    result = encode_examples(rows, encoder, config(max_tokens=32, on_bad_row="skip"))
    assert result.origins == ["a.jsonl:1"] and [item.origin for item in result.rejections] == ["a.jsonl:2"]
    assert len(result.items) + len(result.rejections) == len(rows.records)


def test_long_prompts_have_a_limit_of_their_own(encoder):
    with pytest.raises(DataError, match=r"the prompt has \d+ tokens, limit 8 \(data\.max_prompt_tokens\)"):
        encode_examples(loaded(Example("the" + WORDS * 4, WORDS)), encoder, config(max_prompt_tokens=8))


def test_truncation_takes_the_end_of_a_completion(encoder):
    whole = encoder.encode_example("the", WORDS * 9)
    (cut,) = encode_examples(
        loaded(Example("the", WORDS * 9)), encoder, config(max_tokens=16, too_long="truncate")
    ).items
    assert cut.input_ids == whole.input_ids[:16] and cut.target_mask == whole.target_mask[:16]


def test_truncation_takes_the_beginning_of_a_prompt_but_not_bos(encoder):
    whole = encoder.encode_example("the" + WORDS * 9, WORDS)
    limits = config(max_prompt_tokens=6, too_long="truncate")
    (cut,) = encode_examples(loaded(Example("the" + WORDS * 9, WORDS)), encoder, limits).items
    start = whole.target_mask.index(True)
    assert cut.input_ids == (whole.input_ids[0], *whole.input_ids[start - 5 :])
    assert cut.targets == whole.targets and cut.target_mask[:6] == (False,) * 6


def test_truncation_that_leaves_no_completion_is_a_rejection(encoder):
    with pytest.raises(DataError, match="nothing of the completion would be left"):
        encode_examples(loaded(Example("the" + WORDS * 9, WORDS)), encoder, config(max_tokens=8, too_long="truncate"))


def test_pairs_keep_margin_and_reject_what_truncation_makes_equal(encoder):
    good = PreferencePair("the", WORDS, " dog", 0.5)
    late = PreferencePair("the", WORDS * 5 + " dog", WORDS * 5 + " log")
    limits = config(max_tokens=16, too_long="truncate", on_bad_row="skip")
    result = encode_pairs(loaded(good, late), encoder, limits)
    (pair,) = result.items
    assert pair.chosen == encoder.encode_example("the", WORDS) and pair.rejected == encoder.encode_example(
        "the", " dog"
    )
    assert pair.margin == 0.5
    assert result.rejections[0].origin == "a.jsonl:2" and "same tokens" in result.rejections[0].reason


def test_a_pair_goes_if_either_answer_is_too_long(encoder):
    with pytest.raises(DataError, match=r"a\.jsonl:1: `rejected` has \d+ tokens, limit 16"):
        encode_pairs(loaded(PreferencePair("the", WORDS, WORDS * 9)), encoder, config(max_tokens=16))


def test_labelled(encoder):
    result = encode_labelled(loaded(LabelledResponse("the", WORDS, False)), encoder, config())
    assert result.items[0].label is False and result.items[0].sequence == encoder.encode_example("the", WORDS)


def test_prompts(encoder):
    rows = loaded(Prompt("the cat", {"answer": 4}), Prompt("the" + WORDS * 9))
    with pytest.raises(
        DataError, match=r"a\.jsonl:2: the prompt has \d+ tokens, limit 8 \(data\.max_prompt_tokens, or"
    ):
        encode_prompts(rows, encoder, 8)
    skipped = encode_prompts(rows, encoder, 8, on_bad_row="skip")
    assert skipped.items[0].ids == encoder.encode_prompt("the cat")
    assert (skipped.items[0].text, skipped.items[0].columns) == ("the cat", {"answer": 4})
    assert skipped.origins == ["a.jsonl:1"] and len(skipped.rejections) == 1
    cut = encode_prompts(rows, encoder, 8, "truncate").items[1]
    whole = encoder.encode_prompt("the" + WORDS * 9)
    assert cut.ids == (whole[0], *whole[-7:])


def test_nothing_left_is_an_error_even_with_skip(encoder):
    with pytest.raises(DataError, match="1 of 1 rows"):
        encode_prompts(loaded(Prompt("the" + WORDS * 9)), encoder, 4, on_bad_row="skip")


def test_rows_that_the_template_refuses_are_rejected(make_tokenizer):
    tokenizer = make_tokenizer()
    set_chat_template(tokenizer, "transcript")
    rows = loaded(Prompt((Message("user", "hello"),)), Prompt((Message("tool", "4"),)))
    result = encode_prompts(rows, Encoder(tokenizer), 99, on_bad_row="skip")
    assert result.items[0].text == "\n\nHuman: hello\n\nAssistant:"
    assert "chat template refuses" in result.rejections[0].reason


def test_another_kind_of_record_is_a_clear_error(encoder):
    with pytest.raises(DataError, match=r"a\.jsonl:1 .* kind Prompt; Example is needed"):
        encode_examples(loaded(Prompt("the")), encoder, config())
