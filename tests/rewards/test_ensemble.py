from __future__ import annotations

import pytest

from accord.algorithms.source_metrics import source_metrics
from accord.errors import RewardError
from accord.rewards import EnsembleReward, MixedReward
from accord.types import Rollout


class Member:
    def __init__(self, label: str, scores: list[float | None]) -> None:
        self.label, self.scores = label, scores

    def score(self, rollouts):
        return self.scores


MEMBERS = [Member("a", [1.0, 4.0]), Member("b", [3.0, 4.0]), Member("c", [5.0, 4.0])]
ROLLOUTS = [Rollout((1,), (2,), (0.0,), "stop", "p", "r") for _ in range(2)]


@pytest.mark.parametrize(
    ("combine", "scores"),
    [("mean", [3.0, 4.0]), ("min", [1.0, 4.0]), ("uwo", [3.0 - 0.5 * 8 / 3, 4.0])],
)
def test_by_hand(combine, scores):
    assert EnsembleReward(MEMBERS, "e", combine, 0.5).score(ROLLOUTS) == pytest.approx(scores)


def test_members_and_spread_are_kept_and_logged_and_weigh_nothing():
    scored = MixedReward([(EnsembleReward(MEMBERS, "e", "min", 0.0), 2.0), (Member("f", [1.0, 1.0]), 1.0)]).score(
        ROLLOUTS
    )
    assert [rollout.score for rollout in scored] == [3.0, 9.0]
    std = (8 / 3) ** 0.5
    assert scored[0].scores == pytest.approx({"e": 1.0, "f": 1.0, "e/1": 1.0, "e/2": 3.0, "e/3": 5.0, "e/spread": std})
    assert source_metrics(scored) == pytest.approx(
        {
            "env/reward/e": 2.5,
            "env/reward/f": 1.0,
            "env/reward/e/1": 2.5,
            "env/reward/e/2": 3.5,
            "env/reward/e/3": 4.5,
            "env/reward_spread/e": std / 2,
        }
    )


def test_a_member_that_says_nothing_is_an_error():
    with pytest.raises(RewardError, match="reward e: a member gave no score of the whole response for sample 1"):
        EnsembleReward([*MEMBERS, Member("d", [1.0, None])], "e", "mean", 0.0).score(ROLLOUTS)
