"""Options of `accord reward`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from accord.config.algorithm import AlgorithmConfig
from accord.config.recipe import ExampleRecipe
from accord.types import PreferencePair, Record


class RewardConfig(AlgorithmConfig):
    """Bradley-Terry reward model: -log sigmoid(r_chosen - r_rejected - margin) (Stiennon et al. 2020, arXiv:2009.01325;
    margin: Llama 2, arXiv:2307.09288, equation 2)."""

    type: Literal["reward"] = "reward"
    centre_coef: float = Field(0.01, ge=0)
    """Weight of (r_chosen + r_rejected)^2, which keeps scores around 0 (Eisenstein et al. 2023, arXiv:2312.09244, who use
    0.01). 0 turns it off."""


class RewardRecipe(ExampleRecipe):
    """`accord reward`: learn which of two answers people prefer."""

    # TRL's RewardConfig and OpenRLHF: 1e-4 with LoRA, 9e-6 to 1e-5 for full fine-tuning.
    adapter_learning_rate: ClassVar[float] = 1e-4
    full_learning_rate: ClassVar[float] = 1e-5
    has_heads: ClassVar[bool] = True
    reads: ClassVar[type[Record]] = PreferencePair

    algorithm: RewardConfig = RewardConfig()
