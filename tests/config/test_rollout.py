from __future__ import annotations

import pytest

from accord.config import PPORecipe, RolloutConfig, build
from accord.errors import ConfigError


def test_sampling_from_the_whole_distribution_warns_of_nothing():
    assert RolloutConfig().warnings() == RolloutConfig(temperature=0.7).warnings() == []


@pytest.mark.parametrize("given", [{"top_k": 50}, {"top_p": 0.9}])
def test_sampling_from_a_part_of_it_does(given):
    (warning,) = RolloutConfig(**given).warnings()
    assert "truncated distribution" in warning and "sampling/logprob_difference_max" in warning


LEAST = {"model": {"path": "m"}, "data": {"path": "d"}, "output": "o", "reward": "r.py:f"}


@pytest.mark.parametrize("stop", [[""], ["\n", ""]])
def test_an_empty_text_to_stop_at_is_refused(stop):
    given = LEAST | {"rollout": {"stop": stop}}
    with pytest.raises(ConfigError, match=r"rollout\.stop: .*an empty text would end each response at its first token"):
        build(PPORecipe, given)
    assert build(PPORecipe, given | {"rollout": {"stop": ["\n", " "]}}).rollout.stop == ("\n", " ")


def test_rows_and_folding_are_chosen_by_the_engine_unless_given():
    assert RolloutConfig().max_sequences == RolloutConfig().merge_adapter == "auto"
    assert RolloutConfig(max_sequences=5).max_sequences == 5 and RolloutConfig(merge_adapter=True).merge_adapter is True


def test_an_adapter_that_cannot_be_folded_in_is_refused_before_anything_is_loaded():
    given = LEAST | {"rollout": {"merge_adapter": True}}
    assert build(PPORecipe, given).rollout.merge_adapter is True
    for adapter in (None, {"method": "lora", "dora": True}, {"method": "ia3"}):
        with pytest.raises(ConfigError, match=r"rollout\.merge_adapter: true folds a LoRA adapter"):
            build(PPORecipe, given | {"adapter": adapter, "critic": {"source": "policy_trunk"}})
