"""Rules: worked out by hand."""

from __future__ import annotations

import time

import pytest

from accord.config import FormatConfig, LengthConfig, RegexConfig, RepetitionConfig
from accord.errors import RewardError
from accord.rewards import FormatReward, LengthReward, RegexReward, RepetitionReward
from accord.rewards.rules import repeated
from accord.types import Rollout


def said(text: str, tokens: int = 2) -> Rollout:
    return Rollout((1,), tuple(range(tokens)), (0.0,) * tokens, "stop", "p", text)


@pytest.mark.parametrize(
    ("options", "text", "score"),
    [
        ({"pattern": r"\d+"}, "it is 42", 1.0),
        ({"pattern": r"\d+"}, "none", 0.0),
        ({"pattern": r"\d+", "match": "full"}, "it is 42", 0.0),
        ({"pattern": r"\d+", "match": "full"}, "42", 1.0),
        ({"pattern": "a.b"}, "a\nb", 0.0),
        ({"pattern": "(?s)a.b"}, "a\nb", 1.0),
    ],
)
def test_regex(options, text, score):
    assert RegexReward(RegexConfig(**options), "r").score([said(text)]) == [score]


def test_an_expression_that_takes_for_ever_is_an_error_in_time():
    source = RegexReward(RegexConfig(pattern=r"(a|aa)+\1{5}c", timeout=0.2), "r")
    started = time.monotonic()
    with pytest.raises(RewardError, match=r"reward r: the expression '\(a\|aa\).*' took longer than 0.2 s on sample 1"):
        source.score([said("a"), said("a" * 60)])
    assert time.monotonic() - started < 5


GOOD = "<think>1 < 2</think>\n<answer>yes</answer>"


@pytest.mark.parametrize(
    ("text", "whole", "partial"),
    [
        (GOOD, 1.0, 1.0),
        ("  " + GOOD + "\n", 1.0, 1.0),
        ("Well. " + GOOD, 0.0, 1.0),
        (GOOD + " Bye.", 0.0, 1.0),
        ("<answer>yes</answer><think>late</think>", 0.0, 1.0),
        ("<think>a</think>", 0.0, 0.5),
        ("<think>a<answer>b</answer>", 0.0, 0.75),
        ("<think>a</think><think>b</think><answer>c</answer>", 0.0, 0.5),
        ("<think>a<think>b</think><answer>c</answer>", 0.0, 0.75),
        ("<think></think><answer></answer>", 1.0, 1.0),
        ("", 0.0, 0.0),
    ],
)
def test_format(text, whole, partial):
    assert FormatReward(FormatConfig(tags=("think", "answer")), "f").score([said(text)]) == [whole]
    assert FormatReward(FormatConfig(tags=("think", "answer"), partial=True), "f").score([said(text)]) == [partial]


@pytest.mark.parametrize(
    ("options", "scores"),
    [  # of lengths 0, 5, 10, 12, 15, 40
        ({"target": 10}, [-1.0, -0.5, 0.0, -0.2, -0.5, -1.0]),
        ({"max": 10}, [0.0, 0.0, 0.0, -0.2, -0.5, -1.0]),
        ({"min": 10}, [-1.0, -0.5, 0.0, 0.0, 0.0, 0.0]),
        ({"min": 10, "max": 12}, [-1.0, -0.5, 0.0, 0.0, -0.25, -1.0]),
        ({"target": 10, "scale": 5}, [-1.0, -1.0, 0.0, -0.4, -1.0, -1.0]),
    ],
)
def test_length(options, scores):
    lengths = (0, 5, 10, 12, 15, 40)
    for unit, rollouts in {
        "tokens": [said("", n) for n in lengths],
        "words": [said("two, " * n) for n in lengths],
        "characters": [said("x" * n) for n in lengths],
    }.items():
        source = LengthReward(LengthConfig(unit=unit, **options), "l")
        assert source.score(rollouts) == pytest.approx(scores), unit


def test_repetition_by_hand():
    # a b a b a: bigrams ab ba ab ba, 2 of 4 new
    assert repeated("ababa", 2) == 0.5
    assert repeated("abcde", 2) == 0.0
    assert repeated("aaaa", 1) == 0.75
    assert repeated("ab", 3) == 0.0 == repeated("", 1)
    words = RepetitionReward(RepetitionConfig(n=2, unit="words"), "r")
    assert words.score([said("The cat the Cat the"), said("a b c"), said("")]) == [-0.5, 0.0, 0.0]
    tokens = RepetitionReward(RepetitionConfig(n=1), "r")
    looped = Rollout((1,), (7, 7, 7, 9), (0.0,) * 4, "stop", "p", "text has no say here")
    assert tokens.score([looped]) == [-0.5]
