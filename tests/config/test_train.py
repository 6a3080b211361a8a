from __future__ import annotations

import pytest
from pydantic import ValidationError

from accord.config import RolloutTrain


def test_a_rollout_recipe_has_no_held_out_rows():
    with pytest.raises(ValidationError, match="eval_every is for recipes with held-out rows"):
        RolloutTrain(eval_every=5)
