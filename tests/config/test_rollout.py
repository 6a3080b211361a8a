from __future__ import annotations

import pytest

from accord.config import RolloutConfig


def test_sampling_from_the_whole_distribution_warns_of_nothing():
    assert RolloutConfig().warnings() == RolloutConfig(temperature=0.7).warnings() == []


@pytest.mark.parametrize("given", [{"top_k": 50}, {"top_p": 0.9}])
def test_sampling_from_a_part_of_it_does(given):
    (warning,) = RolloutConfig(**given).warnings()
    assert "truncated distribution" in warning and "sampling/logprob_difference_max" in warning
