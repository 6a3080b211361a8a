"""Several rewards at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from accord.errors import RewardError
from accord.rewards import MixedReward
from accord.types import Rollout


@dataclass
class Fixed:
    label: str
    values: list[float | None]

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return self.values


def test_scores_are_weighted_sums_over_the_sources_that_apply(rollouts) -> None:
    mixed = MixedReward([(Fixed("a", [1.0, None, 3.0]), 2.0), (Fixed("b", [10.0, 20.0, None]), -0.5)])
    scored = mixed.score(rollouts)
    assert [r.score for r in scored] == [2.0 - 5.0, -10.0, 6.0]
    assert [dict(r.scores) for r in scored] == [{"a": 1.0, "b": 10.0}, {"a": None, "b": 20.0}, {"a": 3.0, "b": None}]
    assert mixed.labels == ["a", "b"]
    assert [r.response_ids for r in scored] == [r.response_ids for r in rollouts]
    assert [r.score for r in rollouts] == [None] * 3


def test_a_response_that_no_source_scores_is_an_error_and_not_a_zero(rollouts) -> None:
    mixed = MixedReward([(Fixed("a", [1.0, None, 3.0]), 1.0), (Fixed("b", [1.0, None, None]), 1.0)])
    with pytest.raises(RewardError, match=r"no reward applies to sample 1 \(prompt '3\+3='.*each of \['a', 'b'\]"):
        mixed.score(rollouts)


def test_a_source_of_weight_zero_is_still_recorded(rollouts) -> None:
    scored = MixedReward([(Fixed("a", [1.0, 2.0, 3.0]), 1.0), (Fixed("watched", [5.0, 6.0, None]), 0.0)]).score(
        rollouts
    )
    assert [r.score for r in scored] == [1.0, 2.0, 3.0]
    assert [r.scores["watched"] for r in scored] == [5.0, 6.0, None]


def test_a_watched_source_alone_is_no_score(rollouts) -> None:
    mixed = MixedReward([(Fixed("a", [1.0, None, 3.0]), 1.0), (Fixed("watched", [5.0, 6.0, 7.0]), 0.0)])
    with pytest.raises(RewardError, match="no reward applies to sample 1"):
        mixed.score(rollouts)


def test_counts_of_the_sources_that_count(rollouts) -> None:
    @dataclass
    class Counting(Fixed):
        def take_counts(self) -> dict[str, int]:
            return {"timeout": 2, "failed": 0}

    mixed = MixedReward([(Fixed("a", [1.0] * 3), 1.0), (Counting("code", [0.0] * 3), 1.0)])
    assert mixed.take_counts() == {"code/timeout": 2, "code/failed": 0}


def test_a_server_may_say_that_nothing_applies(rollouts) -> None:
    mixed = MixedReward([(Fixed("a", [1.0, None, 3.0]), 2.0)])
    assert [r.score for r in mixed.score_known(rollouts)] == [2.0, None, 6.0]
