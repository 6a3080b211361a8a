"""Options of `accord orpo`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from accord.config.algorithm import AlgorithmConfig
from accord.config.recipe import ExampleRecipe
from accord.types import PreferencePair, Record


class ORPOConfig(AlgorithmConfig):
    """Odds ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691): fine-tuning on the chosen answers and a term
    that makes them likelier than the rejected ones. It needs no reference, and may start from a base model."""

    type: Literal["orpo"] = "orpo"
    beta: float = Field(0.1, ge=0)
    """Weight of the odds-ratio term (the paper's lambda; TRL's beta: 0.1). 0 is fine-tuning on the chosen answers."""


class ORPORecipe(ExampleRecipe):
    """`accord orpo`: imitate chosen answers and shun rejected ones at once."""

    # Hong et al. train all weights with 8e-6; ten times that with LoRA.
    adapter_learning_rate: ClassVar[float] = 8e-5
    full_learning_rate: ClassVar[float] = 8e-6
    reads: ClassVar[type[Record]] = PreferencePair

    algorithm: ORPOConfig = ORPOConfig()
