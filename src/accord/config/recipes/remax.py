"""Options of `accord remax`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from accord.config.algorithm import KLConfig, PolicyGradient
from accord.config.recipe import RolloutRecipe


class ReMaxConfig(PolicyGradient):
    """ReMax (Li et al. 2023, arXiv:2310.10505): REINFORCE whose baseline is the score of the greedy response to the same prompt;
    no critic, and one more response to each prompt."""

    type: Literal["remax"] = "remax"
    kl: KLConfig = KLConfig(coef=0.1, target=None)
    """In the reward by default (DeepSpeed-Chat, on which the authors' code builds: 0.1)."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token (the paper: 1)."""


class ReMaxRecipe(RolloutRecipe):
    """`accord remax`: REINFORCE against the greedy response; no critic."""

    # As for the other methods without a critic.
    adapter_learning_rate: ClassVar[float] = 1e-5
    full_learning_rate: ClassVar[float] = 1e-6

    algorithm: ReMaxConfig = ReMaxConfig()
