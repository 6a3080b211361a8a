"""Labels of quality: where they come from, how they stand in a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.config import DataConfig
from accord.data import read_records
from accord.data.conditioning import Conditioning, as_examples, fit_conditioning, read_conditioning
from accord.errors import ConfigError, DataError
from accord.types import Example, Message
from recipes.tiny_runs import write_rows

TWO = Conditioning("[{label}] {prompt}", ("bad", "good"), (0.5,))


def test_scores_are_cut_into_quantiles():
    made = fit_conditioning("{label} {prompt}", ("low", "mid", "high"), [5, 1, 3, 2, 6, 4, 9, 7, 8])
    assert made.edges == (4, 7) and made.best == "high"
    assert [made.label_of(float(x)) for x in range(1, 10)] == ["low"] * 3 + ["mid"] * 3 + ["high"] * 3
    assert made.label_of(-99.0) == "low" and made.label_of(99.0) == "high"


@pytest.mark.parametrize(
    ("labels", "scores", "sizes"),
    [
        (
            ("bad", "good"),
            [0.0] * 6 + [1.0] * 3 + [5.0],
            [6, 4],
        ),  # the median is the least: still the worst half is bad
        (("bad", "good"), [0.0] + [1.0] * 3 + [5.0] * 6, [4, 6]),
        (("bad", "fine", "good"), [0.0] * 80 + [float(n) for n in range(1, 21)], [80, 1, 19]),
        (("bad", "fine", "good"), [0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 3.0], [2, 3, 2]),
    ],
)
def test_equal_scores_stay_together_and_no_label_is_empty(labels, scores, sizes):
    made = fit_conditioning("{label} {prompt}", labels, scores)
    assert [sum(made.label_of(score) == label for score in scores) for label in labels] == sizes


def test_as_many_scores_as_labels_get_one_each_however_many_rows_have_them():
    made = fit_conditioning("{label} {prompt}", ("bad", "good"), [1.0] * 9 + [0.0])
    assert made.edges == (0.5,) and made.label_of(1.0) == "good" and made.label_of(0.0) == "bad"


def test_labels_of_the_data_are_taken_as_they_are():
    made = fit_conditioning("{label} {prompt}", ("no", "maybe", "yes"), ["yes", "no", "yes"])
    assert made.edges == () and made.label_of("maybe") == "maybe" and made.best == "yes"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 1.0], "the rows have 1 different scores, too few for 2 labels"),
        (["good", "fine"], "the rows have the labels fine, good; algorithm.labels are bad, good, worst first"),
        (["good", 1.0], "the rows have the labels good and scores too"),
    ],
)
def test_values_that_do_not_fit(values, message):
    with pytest.raises(DataError, match=message):
        fit_conditioning("{label} {prompt}", ("bad", "good"), values)


def test_values_of_other_rows_are_looked_at():
    by_word = Conditioning("{label} {prompt}", ("bad", "good"))
    by_word.check(["good", "bad"])
    TWO.check([9.0, "good"])
    for conditioning in (by_word, TWO):
        with pytest.raises(DataError, match=r"rows have the labels fine; algorithm\.labels are bad, good"):
            conditioning.check(["fine", "good"])
    with pytest.raises(DataError, match="held-out rows have scores, and the training rows have labels"):
        by_word.check(["good", 1.0])


def test_the_label_stands_in_the_prompt():
    assert TWO.apply("a {prompt} of {braces}") == "[good] a {prompt} of {braces}"
    assert TWO.apply("x", "bad") == "[bad] x"
    talk = (Message("system", "s"), Message("user", "one"), Message("assistant", "a"), Message("user", "two"))
    assert TWO.apply(talk) == (*talk[:3], Message("user", "[good] two"))
    with pytest.raises(ConfigError, match="label 'fine' is not one that the model knows: bad, good"):
        TWO.apply("x", "fine")
    with pytest.raises(ConfigError, match="without a user's turn"):
        TWO.apply((Message("system", "s"),))


def test_it_is_saved_beside_the_model(tmp_path: Path):
    assert read_conditioning(tmp_path) is None and read_conditioning("some/hub-name") is None
    TWO.save(tmp_path)
    assert read_conditioning(tmp_path) == TWO
    (tmp_path / "model.gguf").write_bytes(b"")
    assert read_conditioning(tmp_path / "model.gguf") is None


def read(tmp_path: Path, rows):
    return read_records(DataConfig(path=write_rows(tmp_path / "rows.jsonl", rows)))


def test_values_of_every_format(tmp_path: Path):
    pairs = [{"prompt": "p", "chosen": " a", "rejected": " b"}]
    loaded, values = as_examples(read(tmp_path, pairs), "score")
    assert [(e.completion, v) for e, v in zip(loaded.records, values, strict=True)] == [(" a", 1.0), (" b", 0.0)]
    thumbs = [{"prompt": "p", "completion": " a", "label": True}, {"prompt": "p", "completion": " b", "label": False}]
    loaded, values = as_examples(read(tmp_path, thumbs), "score")
    assert values == [1.0, 0.0] and all(isinstance(record, Example) for record in loaded.records)
    scores = [{"prompt": "p", "completion": " a", "score": 2}, {"prompt": "p", "completion": " b", "score": -0.5}]
    assert as_examples(read(tmp_path, scores), "score")[1] == [2.0, -0.5]
    words = [{"prompt": "p", "completion": " a", "quality": "good"}]
    assert as_examples(read(tmp_path, words), "quality")[1] == ["good"]
    assert as_examples(read(tmp_path, words), None)[1] == [0.0]


@pytest.mark.parametrize("bad", [None, [1], float("nan"), 10**400])
def test_a_row_without_a_value_is_named(tmp_path: Path, bad):
    rows = [{"prompt": "p", "completion": " a", "score": 1.0}, {"prompt": "p", "completion": " b", "score": bad}]
    with pytest.raises(DataError, match=r"rows\.jsonl.*2.*column `score` \(algorithm.column\) is"):
        as_examples(read(tmp_path, rows), "score")


def test_a_prompt_alone_is_no_example(tmp_path: Path):
    with pytest.raises(DataError, match="has a prompt and no answer"):
        as_examples(read(tmp_path, [{"prompt": "p"}]), "score")
