"""Labelled texts and words: ids of the tokenizer's own, classes where they belong, unknown labels named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from accord.config.data import DataConfig
from accord.data import Encoder, check_labels, encode_classes, find_labels, read_records
from accord.data.formats import Loaded
from accord.errors import DataError
from accord.types import Example, LabelledText, LabelledTokens

LABELS = ("B", "A", "O")


@pytest.fixture(scope="session", params=[True, False], ids=["bos", "no bos"])
def encoder(make_tokenizer, request) -> Encoder:
    return Encoder(make_tokenizer(bos=request.param))


def loaded(*records) -> Loaded:
    return Loaded("a.jsonl", "any", list(records), [f"a.jsonl:{n}" for n, _ in enumerate(records, 1)])


def config(**values) -> DataConfig:
    return DataConfig(path="a.jsonl", **values)


def test_a_text_has_the_tokenizer_s_own_ids_and_its_class_at_the_last(encoder):
    text = "the cat sat on the mat"
    (item,) = encode_classes(loaded(LabelledText(text, "A")), encoder, config(), LABELS).items
    assert list(item.input_ids) == encoder.tokenizer(text)["input_ids"]
    assert item.classes == (None,) * (len(item) - 1) + (1,)


def test_each_word_has_its_class_at_its_last_token(encoder):
    words, labels = ("the", "catsatmat", "on", "Zürich", "x"), ("O", "A", "B", "A", "O")
    (item,) = encode_classes(loaded(LabelledTokens(words, labels)), encoder, config(), LABELS).items
    assert list(item.input_ids) == encoder.tokenizer(" ".join(words))["input_ids"]
    read = [place for place, number in enumerate(item.classes) if number is not None]
    assert [item.classes[place] for place in read] == [2, 1, 0, 1, 2]
    decode = encoder.tokenizer.decode
    for count, place in enumerate(read, 1):
        text = decode(item.input_ids[: place + 1], skip_special_tokens=True)
        assert text == " ".join(words[:count]), "all of the word has been read, and nothing behind it"
    assert len(item) > len(words), "some words have several tokens"


def test_truncation_takes_words_with_their_labels(encoder):
    words = ("the", "cat", "sat", "on", "the", "mat")
    rows = loaded(LabelledTokens(words, ("A", "B", "A", "B", "A", "B")))
    whole = encode_classes(rows, encoder, config(), LABELS).items[0]
    for limit in range(2 + len(encoder.leading_ids), len(whole)):
        cut = encode_classes(rows, encoder, config(max_tokens=limit, too_long="truncate"), LABELS).items[0]
        assert (cut.input_ids, cut.classes) == (whole.input_ids[:limit], whole.classes[:limit])
    with pytest.raises(DataError, match=rf"a.jsonl:1: the row has {len(whole)} tokens, limit 4 \(data.max_tokens\)"):
        encode_classes(rows, encoder, config(max_tokens=4), LABELS)
    text = loaded(LabelledText("the cat sat on the mat", "A"))
    cut = encode_classes(text, encoder, config(max_tokens=3, too_long="truncate"), LABELS).items[0]
    assert cut.classes == (None, None, 1)


def test_labels_are_found_and_put_in_order():
    assert find_labels(loaded(LabelledText("a", "b"), LabelledText("a", "a"), LabelledText("a", "10"))) == (
        "10",
        "a",
        "b",
    )
    assert find_labels(loaded(*(LabelledText("a", label) for label in ("10", "9", "-1")))) == ("-1", "9", "10")
    assert find_labels(loaded(LabelledTokens(("a", "b"), ("O", "B-PER")))) == ("B-PER", "O")
    with pytest.raises(DataError, match=r"all rows of a\.jsonl have the label 'x', and a classifier tells two or more"):
        find_labels(loaded(LabelledText("a", "x"), LabelledText("b", "x")))


def test_a_label_that_is_not_to_learn_is_named_with_file_and_line(encoder):
    rows = loaded(LabelledText("a", "A"), LabelledText("b", "Q"), LabelledText("c", "B"))
    reason = r"a\.jsonl:2: `label` is 'Q', which is none of the 3 labels to learn: labels: B, A, O"
    with pytest.raises(DataError, match=reason):
        check_labels(rows, LABELS)
    with pytest.raises(DataError, match=reason):
        encode_classes(rows, encoder, config(), LABELS)
    skipped = encode_classes(rows, encoder, config(on_bad_row="skip"), LABELS)
    assert skipped.origins == ["a.jsonl:1", "a.jsonl:3"] and [r.origin for r in skipped.rejections] == ["a.jsonl:2"]
    words = loaded(LabelledTokens(("a", "b"), ("B-PER", "B-PRE")))
    with pytest.raises(DataError, match=r"label 2 is 'B-PRE', .* did you mean 'B-PER'\?"):
        check_labels(words, ("B-PER", "O"))


def test_text_to_imitate_is_text_whatever_its_label(tmp_path: Path):
    """A file of labelled texts feeds `accord sft` as it did before there were classifiers."""
    file = tmp_path / "rows.jsonl"
    rows = [
        {"text": "a", "label": 0.5},
        {"text": "b", "label": "x"},
        {"text": "c", "label": None},
        {"text": "d", "label": [1]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_records(DataConfig(path=str(file)), want=Example)
    assert [record.completion for record in found.records] == ["a", "b", "c", "d"] and found.format == "text"
    named = read_records(DataConfig(path=str(file), format="labelled_text", on_bad_row="skip"), want=Example)
    assert named.records == [Example("", "b", {"label": "x"})] and len(named.rejections) == 3


def test_rows_of_the_other_level_are_told_the_setting(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"tokens": ["a"], "labels": ["b"]}\n')
    with pytest.raises(DataError, match=r"for `accord classify` set algorithm\.level: token"):
        read_records(DataConfig(path=str(file)), want=LabelledText)
    file.write_text('{"text": "a", "label": "b"}\n')
    with pytest.raises(DataError, match=r"for `accord classify` set algorithm\.level: sequence"):
        read_records(DataConfig(path=str(file)), want=LabelledTokens)
