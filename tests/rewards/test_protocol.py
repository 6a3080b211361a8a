"""The one check that every source's scores pass."""

from __future__ import annotations

from collections import deque
from fractions import Fraction

import numpy
import pytest
import torch

from accord.errors import RewardError
from accord.rewards.protocol import Counts, checked_rewards, checked_scores, describe, with_scores
from accord.types import Rollout

GOOD = [
    [1.5, None, -2],
    (1.5, None, -2),
    deque([1.5, None, -2]),
    [True, None, False],
    [numpy.float32(1.5), None, numpy.int64(-2)],
    [torch.tensor(1.5), None, torch.tensor([-2.0]).squeeze()],
    torch.tensor([1.5, 0.0, -2.0]),
    torch.tensor([1.5, 0.0, -2.0], dtype=torch.bfloat16, requires_grad=True),
    numpy.array([1.5, 0.0, -2.0]),
    torch.tensor([True, False, False]),
]


@pytest.mark.parametrize("scores", GOOD, ids=lambda scores: type(scores).__name__)
def test_numbers_of_any_kind_are_accepted_and_become_floats(scores, rollouts) -> None:
    got = checked_scores("r", scores, rollouts)
    assert [type(score) for score in got if score is not None] == [float] * (3 - got.count(None))
    assert got in ([1.5, None, -2.0], [1.5, 0.0, -2.0], [1.0, None, 0.0], [1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    "scores",
    ["abc", b"abc", 1.0, None, {0: 1.0, 1: 1.0, 2: 1.0}, {1.0, 2.0, 3.0}, (x for x in [1.0] * 3), torch.tensor(1.0),
     numpy.array(2.0)],
    ids=lambda scores: type(scores).__name__,
)  # fmt: skip
def test_what_is_not_a_list_of_scores_is_refused(scores, rollouts) -> None:
    with pytest.raises(RewardError, match=r"reward r returned a \w+; it must return a list of floats or None"):
        checked_scores("r", scores, rollouts)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_there_is_one_score_for_each_response(count: int, rollouts) -> None:
    with pytest.raises(RewardError, match=f"reward r returned {count} scores for 3 responses"):
        checked_scores("r", [1.0] * count, rollouts)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), torch.tensor(torch.nan), numpy.inf])
def test_a_score_that_is_not_finite_names_the_sample(bad, rollouts) -> None:
    with pytest.raises(
        RewardError, match=r"reward r gave -?(nan|inf) for sample 1 \(prompt '3\+3=', response 'five'\)"
    ):
        checked_scores("r", [1.0, bad, 2.0], rollouts)


@pytest.mark.parametrize("bad", [10**400, -(10**5000), Fraction(10**400)], ids=["large", "larger", "fraction"])
def test_a_number_that_no_float_holds_names_the_sample(bad, rollouts) -> None:
    with pytest.raises(RewardError, match=r"reward r gave a number too large for a float for sample 1 \(prompt '3\+3="):
        checked_scores("r", [1.0, bad, 2.0], rollouts)


@pytest.mark.parametrize("bad", ["0.5", [0.5], 1j, torch.tensor([0.5, 0.5]), numpy.zeros((2, 2)), object()])
def test_a_score_of_the_wrong_type_names_the_sample(bad, rollouts) -> None:
    with pytest.raises(RewardError, match=r"reward r gave .* for sample 2 .*; a score is a number or None"):
        checked_scores("r", [1.0, None, bad], rollouts)


def test_a_sample_is_described_shortly(rollouts) -> None:
    from dataclasses import replace

    long = replace(rollouts[0], response_text="x" * 500)
    assert describe(7, rollouts[0]) == "sample 7 (prompt '2+2=', response '4')"
    assert len(describe(7, long)) < 130 and describe(7, long).endswith("…')")


# --- scores of tokens ------------------------------------------------------------------------------------------------


def answer(tokens: int, **more) -> Rollout:
    return Rollout((1,), tuple(range(2, 2 + tokens)), (-0.1,) * tokens, "stop", "p", "r", **more)


def test_a_response_may_have_a_score_for_each_token():
    given = [0.5, [1.0, 2.0], None, torch.tensor([3.0])]
    assert checked_rewards("r", given, [answer(3), answer(2), answer(2), answer(1)]) == [0.5, (1.0, 2.0), None, (3.0,)]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[1.0, 2.0]], r"reward r gave 2 scores for the tokens of sample 0 .* which has 3"),
        ([[1.0, float("nan"), 2.0]], r"reward r gave nan for token 1 of sample 0 .*; a score must be finite"),
        ([[1.0, "2", 2.0]], r"reward r gave '2' for token 1 of sample 0"),
    ],
)
def test_scores_of_tokens_that_are_not_one_each_or_not_finite(scores, message):
    with pytest.raises(RewardError, match=message):
        checked_rewards("r", scores, [answer(3)])


def test_sums_of_several_sources_by_hand():
    scored = with_scores(
        answer(2),
        {"a": 2.0, "b": (1.0, 3.0), "c": (0.5, 0.0), "d": 9.0, "e": None},
        {"a": 0.5, "b": 2, "c": 1, "d": 0, "e": 1},
    )
    assert scored.score == 1.0 and scored.token_scores == (2.5, 6.0) and scored.total_score == 9.5
    assert scored.scores == {"a": 2.0, "b": 4.0, "c": 0.5, "d": 9.0, "e": None}
    assert with_scores(answer(2), {"b": (1.0, 3.0)}, {"b": 1.0}).score == 0.0
    assert with_scores(answer(2), {"b": None, "d": 1.0}, {"b": 1.0, "d": 0.0}).score is None
    with pytest.raises(ValueError, match="has no score yet"):
        _ = answer(2).total_score


def test_counts_start_anew_when_they_are_taken() -> None:
    counts = Counts("a", "b")
    counts.add("a")
    counts.add("a")
    assert counts.take() == {"a": 2, "b": 0} and counts.take() == {"a": 0, "b": 0}
