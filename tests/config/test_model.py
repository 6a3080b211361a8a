from __future__ import annotations

import pytest
from pydantic import ValidationError

from accord.config import CriticConfig, LoraConfig, ReferenceConfig


@pytest.mark.parametrize("section", [ReferenceConfig, CriticConfig])
@pytest.mark.parametrize("given", [{"source": "model"}, {"path": "x"}])
def test_path_goes_with_source_model(section, given):
    with pytest.raises(ValidationError, match="`path` goes with `source: model`, and `source: model` needs a `path`"):
        section(**given)
    assert section(source="model", path="x").path == "x"


def test_a_head_on_the_trunk_has_no_reward_model_to_start_from():
    with pytest.raises(ValidationError, match="`start: reward` needs a critic with weights of its own"):
        CriticConfig(source="policy_trunk", start="reward")


def test_targets_are_a_name_or_several():
    assert LoraConfig().targets == "all-linear"
    assert LoraConfig(targets=["q_proj", "v_proj"]).targets == ("q_proj", "v_proj")
