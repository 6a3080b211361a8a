"""Steps of rows of feedback and of sampled responses end at the same tokens."""

from __future__ import annotations

import pytest

from accord.config import DataConfig
from accord.data import Encoder, encode_steps, set_chat_template
from accord.data.formats import check_rows
from accord.data.sources import Row, RowError
from accord.data.steps import step_ends
from accord.errors import DataError
from accord.types import Message, Prompt, StepwiseExample

STEPS = (" the film was good", "a slow end", "and a fine cast")


@pytest.mark.parametrize("separator", ["\n", "\n\n", " | ", "."])
def test_each_step_ends_with_its_separator_and_the_last_with_the_sequence(tokenizer, separator):
    encoder = Encoder(tokenizer)
    sequence, ends = encoder.encode_steps("a film:", STEPS, separator)
    assert sequence == encoder.encode_example("a film:", separator.join(STEPS))
    assert ends[-1] == len(sequence) - 1 and sequence.input_ids[-1] == tokenizer.eos_token_id
    text = "a film:"
    for end, step in zip(ends[:-1], STEPS, strict=False):
        text += step + separator
        # A space at the end of the separator belongs to the token of the next word.
        assert tokenizer.decode(sequence.input_ids[: end + 1], skip_special_tokens=True) == text.rstrip(" ")


@pytest.mark.parametrize("separator", ["\n", "\n\n", " | "])
def test_a_response_of_the_same_tokens_has_the_same_ends(tokenizer, separator):
    sequence, ends = Encoder(tokenizer).encode_steps("a film:", STEPS, separator)
    cut = sequence.target_mask.index(True)
    assert step_ends(sequence.input_ids[cut:], tokenizer, separator) == tuple(end - cut for end in ends)


def test_a_token_that_reaches_into_the_next_step_is_not_the_end_of_this_one(tokenizer):
    # The separator is a space, which tokens carry in front of their words: the word before it is the last token inside.
    sequence, ends = Encoder(tokenizer).encode_steps("a film:", ("good", "odd", "fine"), " ")
    beginnings = [tokenizer.decode(sequence.input_ids[: end + 1], skip_special_tokens=True) for end in ends]
    assert beginnings == ["a film:good", "a film:good odd", "a film:good odd fine"]


def test_steps_of_a_conversation(tokenizer):
    import copy

    chat = copy.deepcopy(tokenizer)
    set_chat_template(chat, "transcript")
    encoder = Encoder(chat)
    sequence, ends = encoder.encode_steps((Message("user", "film?"),), ("good", "odd"), "\n")
    assert chat.decode(sequence.input_ids[: ends[0] + 1], skip_special_tokens=True).endswith("Assistant: good\n")
    assert ends[1] == len(sequence) - 1


def ids(tokenizer, text: str, end: bool = True) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id] * end


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("good", 1),
        ("good\nodd", 2),
        ("good\n\n\nodd", 2),
        ("\ngood\nodd\n", 2),
        ("\n", 1),
        ("good\n \nodd", 2),
        ("", 1),
    ],
)
@pytest.mark.parametrize("end", [True, False])
def test_white_space_is_no_step(tokenizer, text, count, end):
    tokens = ids(tokenizer, text, end) or [5]
    ends = step_ends(tokens, tokenizer, "\n")
    assert len(ends) == count and ends[-1] == len(tokens) - 1 and sorted(set(ends)) == list(ends)


def rows(*values: dict) -> list[Row]:
    return [Row(f"f.jsonl:{n}", value) for n, value in enumerate(values, 1)]


GOOD = {"prompt": "a film:", "completions": [" good", "odd"], "labels": [True, 0.25], "id": 7}


def test_rows_are_recognised_and_read():
    loaded = check_rows(rows(GOOD), "f.jsonl")
    assert loaded.format == "stepwise"
    assert loaded.records == [StepwiseExample("a film:", (" good", "odd"), (1.0, 0.25), {"id": 7})]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": [True]}, "2 steps in `completions` and 1 `labels`"),
        ({"labels": [True, 1.5]}, "label 2 is 1.5; it must be true, false, or a number from 0 to 1"),
        ({"labels": [True, "yes"]}, "label 2 is 'yes'"),
        ({"labels": [True, float("nan")]}, "label 2 is nan"),
        ({"completions": [" good", " "]}, "step 2 of `completions` is empty"),
        ({"completions": [" good", 3]}, "step 2 of `completions` is empty or no text"),
        ({"completions": [], "labels": []}, "`completions` is not a list"),
        ({"prompt": ""}, "the prompt is empty"),
    ],
)
def test_bad_rows(change, reason):
    loaded = check_rows(rows(GOOD, GOOD | change), "f.jsonl")
    assert len(loaded.records) == 1 and reason in loaded.rejections[0].reason


def test_truncation_leaves_out_steps_with_their_labels(tokenizer):
    encoder = Encoder(tokenizer)
    loaded = check_rows(rows({"prompt": "a film:", "completions": list(STEPS), "labels": [1, 0, 0.5]}), "f.jsonl")
    whole = encode_steps(loaded, encoder, DataConfig(path="f", max_tokens=99)).items[0]
    assert whole.labels == (1.0, 0.0, 0.5) and sum(whole.sequence.target_mask) == 3
    for limit in range(whole.sequence.target_mask.index(True) + 1, len(whole.sequence)):
        cut = encode_steps(loaded, encoder, DataConfig(path="f", max_tokens=limit, too_long="truncate")).items[0]
        assert cut.sequence.target_mask == whole.sequence.target_mask[:limit]
        assert cut.labels == whole.labels[: sum(cut.sequence.target_mask)] and len(cut.labels) < 3
    with pytest.raises(DataError, match="no step is left whole"):
        encode_steps(loaded, encoder, DataConfig(path="f", max_tokens=6, too_long="truncate"))


def test_a_shorter_prompt_moves_the_ends_along(tokenizer):
    encoder = Encoder(tokenizer)
    loaded = check_rows(
        rows({"prompt": "a slow film with a cast:", "completions": list(STEPS), "labels": [1, 0, 1]}), "f"
    )
    config = DataConfig(path="f", max_tokens=99, max_prompt_tokens=3, too_long="truncate")
    whole, cut = (encode_steps(loaded, encoder, c).items[0] for c in (DataConfig(path="f"), config))
    gone = len(whole.sequence) - len(cut.sequence)
    assert gone > 0 and cut.labels == whole.labels
    ends = [[t for t, target in enumerate(one.sequence.target_mask) if target] for one in (whole, cut)]
    assert [end - gone for end in ends[0]] == ends[1]


def test_other_rows_are_refused_by_name_and_the_other_way_round():
    from accord.data import convert
    from accord.types import PreferencePair

    pair, steps = PreferencePair("p", "a", "b"), StepwiseExample("p", ("a",), (1.0,))
    with pytest.raises(DataError, match="needs judged steps: columns `prompt`, `completions`, `labels`"):
        convert([pair], StepwiseExample)
    with pytest.raises(DataError, match=r"for `accord reward` set algorithm\.level: step"):
        convert([steps], PreferencePair)
    assert convert([steps], Prompt).records == [Prompt("p")]


def test_a_step_inside_one_token_is_refused(tokenizer):
    assert len(ids(tokenizer, " odd", False)) == 1
    with pytest.raises(RowError, match="step 1 has no token of its own"):
        Encoder(tokenizer).encode_steps("a", (" o", "d"), "d")
