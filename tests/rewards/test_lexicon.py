"""Sentiment from words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from accord.config import LexiconConfig
from accord.errors import AccordWarning, ConfigError
from accord.rewards import LexiconReward
from accord.rewards.lexicon import load_words
from accord.types import Rollout


def score(words: object, text: str, **options) -> float:
    (value,) = LexiconReward(LexiconConfig(words=str(words), **options), "s").score(
        [Rollout((1,), (2,), (0.0,), "stop", "An awful prompt", text)]
    )
    assert value is not None
    return value


def test_a_list_with_weights(tmp_path: Path):
    file = tmp_path / "words.txt"
    file.write_text("# a list\n\ngood 1\nGREAT\t2\t0.9\t[1, 2]\nbad\t-1.5\nwell-made 1\ncan't -0.5\n")
    assert load_words(file) == {"good": 1.0, "great": 2.0, "bad": -1.5, "well-made": 1.0, "can't": -0.5}
    assert score(file, "A Good, great film.") == 1.5
    assert score(file, "good, good, BAD!") == pytest.approx(0.5 / 3)
    assert score(file, "good, good, BAD!", once=True) == pytest.approx(-0.25)
    assert score(file, "good, good, BAD!", divide_by="none") == 0.5
    assert score(file, "so good a film", divide_by="words") == 0.25
    assert score(file, "Well-made; I can’t complain") == 0.25
    assert score(file, "goodness") == 0.0 == score(file, "")


def test_an_opinion_lexicon_as_it_is_distributed(tmp_path: Path):
    (tmp_path / "positive-words.txt").write_bytes("; opinion lexicon\n\na+\nna\u00efve\nfine\n".encode("latin-1"))
    (tmp_path / "negative-words.txt").write_bytes(b"2-faced\nodd\n")
    assert load_words(tmp_path) == {"a+": 1.0, "na\u00efve": 1.0, "fine": 1.0, "2-faced": -1.0, "odd": -1.0}
    assert score(tmp_path, "An A+ for a 2-faced, odd, fine, fine film") == pytest.approx(1 / 5)


def test_entries_that_can_never_match_are_told(tmp_path: Path):
    (tmp_path / "w.txt").write_text("fine\t1\nfed up\t-1\n:-)\t2\n")
    with pytest.warns(AccordWarning, match="2 of 3 entries are not one word, such as 'fed up'"):
        assert load_words(tmp_path / "w.txt")["fine"] == 1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("good one\n", r"w.txt:1: a line is a word, a tab or a space, and a number \(found: 'good one'\)"),
        ("fine 1\ngood\n", r"w.txt:2: "),
        ("good nan\n", r"w.txt:1: "),
        ("# nothing\n", "holds no words"),
    ],
)
def test_a_list_that_cannot_be_read(text, said, tmp_path: Path):
    (tmp_path / "w.txt").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_words(tmp_path / "w.txt")


def test_no_such_list(tmp_path: Path):
    with pytest.raises(ConfigError, match="neither `vader`, nor a file of words and weights, nor a folder"):
        LexiconReward(LexiconConfig(words=str(tmp_path / "none.txt")), "s")
    with pytest.raises(ConfigError, match="nor a folder with positive-words"):
        LexiconReward(LexiconConfig(words=str(tmp_path)), "s")


def test_vader_is_the_library_s_compound_score():
    library = pytest.importorskip("vaderSentiment.vaderSentiment").SentimentIntensityAnalyzer()
    for text in ("A wonderful, moving film!", "The worst film of the year.", "It lasts an hour.", ""):
        assert score("vader", text) == library.polarity_scores(text)["compound"]
    assert score("vader", "A wonderful, moving film!") > 0.5 > 0 > score("vader", "The worst film of the year.")


def test_vader_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(ConfigError, match="pip install vaderSentiment"):
        LexiconReward(LexiconConfig(words="vader"), "s")
