from __future__ import annotations

import pytest
from pydantic import ValidationError

from accord.config import KLConfig, PPOConfig, RewardConfig


def test_defaults_are_those_of_the_sources_they_name():
    ppo = PPOConfig()
    assert (ppo.gamma, ppo.lam, ppo.clip, ppo.value_clip, ppo.value_coef) == (1.0, 0.95, 0.2, 0.2, 0.1)
    assert (ppo.kl.estimator, ppo.kl.coef, ppo.kl.target, ppo.kl.horizon, ppo.kl.use) == (
        "k1",
        0.2,
        6.0,
        10_000,
        "reward",
    )
    assert (ppo.epochs, ppo.minibatches, ppo.ratio_guard) == (4, 4, 10.0)
    assert RewardConfig().centre_coef == 0.01


def test_in_the_loss_the_default_estimator_is_the_one_with_the_right_gradient():
    assert KLConfig(use="loss").estimator == "k2"
    assert PPOConfig.model_validate({"kl": {"use": "loss"}}).kl.estimator == "k2"
    assert KLConfig(use="loss", estimator="k3").estimator == "k3"


@pytest.mark.parametrize(
    ("estimator", "why"),
    [
        ("k1", "its gradient is 0 on average"),
        ("abs", "its gradient is not that of a divergence"),
        ("full", "the reference's whole distribution is not kept until the update"),
    ],
)
def test_estimators_that_are_no_loss(estimator, why):
    with pytest.raises(ValidationError) as caught:
        KLConfig(use="loss", estimator=estimator)
    message = caught.value.errors()[0]["msg"]
    assert f"estimator {estimator} cannot be a loss term ({why}); use k2 or k3, or `use: reward`" in message
    assert KLConfig(use="reward", estimator=estimator).estimator == estimator
