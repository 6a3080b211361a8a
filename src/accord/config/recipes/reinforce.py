"""Options of `accord reinforce`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config.algorithm import KLConfig, PolicyGradient
from accord.config.recipe import RolloutRecipe


class ReinforceConfig(PolicyGradient):
    """REINFORCE++ (Hu 2025, arXiv:2501.03262): the return of each token (score, minus the KL penalties from it on), whitened
    over the whole batch, with PPO's clipped loss; no critic."""

    type: Literal["reinforce"] = "reinforce"
    kl: KLConfig = KLConfig(coef=0.01, target=None)
    """In the reward by default (OpenRLHF's examples: 0.01)."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token (OpenRLHF: 1)."""
    baseline: bool = False
    """Subtract the mean score of the prompt's responses first (REINFORCE++ with baseline; needs `rollout.samples` >= 2)."""

    @property
    def compares_responses(self) -> bool:
        """With a baseline, which is their group's."""
        return self.baseline


class ReinforceRecipe(RolloutRecipe):
    """`accord reinforce`: REINFORCE++, PPO's loss with whitened returns and no critic."""

    # OpenRLHF's REINFORCE++ examples: 5e-7 for full fine-tuning; ten to twenty times that with LoRA.
    adapter_learning_rate: ClassVar[float] = 1e-5
    full_learning_rate: ClassVar[float] = 5e-7

    algorithm: ReinforceConfig = ReinforceConfig()

    @model_validator(mode="after")
    def _has_groups(self) -> Self:
        if self.algorithm.baseline:
            self._check_groups()
        return self
