"""The one check that every source's scores pass."""

from __future__ import annotations

from collections import deque

import numpy
import pytest
import torch

from accord.errors import RewardError
from accord.rewards.protocol import Counts, checked_scores, describe

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


@pytest.mark.parametrize("bad", ["0.5", [0.5], 1j, torch.tensor([0.5, 0.5]), numpy.zeros((2, 2)), object()])
def test_a_score_of_the_wrong_type_names_the_sample(bad, rollouts) -> None:
    with pytest.raises(RewardError, match=r"reward r gave .* for sample 2 .*; a score is a number or None"):
        checked_scores("r", [1.0, None, bad], rollouts)


def test_a_sample_is_described_shortly(rollouts) -> None:
    from dataclasses import replace

    long = replace(rollouts[0], response_text="x" * 500)
    assert describe(7, rollouts[0]) == "sample 7 (prompt '2+2=', response '4')"
    assert len(describe(7, long)) < 130 and describe(7, long).endswith("…')")


def test_counts_start_anew_when_they_are_taken() -> None:
    counts = Counts("a", "b")
    counts.add("a")
    counts.add("a")
    assert counts.take() == {"a": 2, "b": 0} and counts.take() == {"a": 0, "b": 0}
