"""Options of `accord rloo`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from accord.config.algorithm import KLConfig, PolicyGradient
from accord.config.recipe import RolloutRecipe


class RLOOConfig(PolicyGradient):
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740): the baseline of a response is the mean score of the
    other responses to its prompt; no critic. Needs `rollout.samples` of 2 or more."""

    type: Literal["rloo"] = "rloo"
    kl: KLConfig = KLConfig(coef=0.05, target=None)
    """In the reward by default (TRL's RLOO: 0.05)."""
    correction_level: Literal["sequence"] = "sequence"
    """A whole response is one action, so it has one weight."""

    @property
    def compares_responses(self) -> bool:
        """With the others' mean."""
        return True


class RLOORecipe(RolloutRecipe):
    """`accord rloo`: several responses to each prompt; each is judged by the others' mean."""

    # TRL's RLOO: 1e-6 for full fine-tuning; ten times that with LoRA.
    adapter_learning_rate: ClassVar[float] = 1e-5
    full_learning_rate: ClassVar[float] = 1e-6
    default_samples: ClassVar[int] = 4

    algorithm: RLOOConfig = RLOOConfig()

    @model_validator(mode="after")
    def _has_groups(self) -> Self:
        self._check_groups()
        return self
