"""Options of `accord bco`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from accord.config.algorithm import AlgorithmConfig
from accord.config.model import ReferenceConfig
from accord.config.recipe import ExampleRecipe
from accord.types import LabelledResponse, Record


class BCOConfig(AlgorithmConfig):
    """Binary classifier optimisation: -w log sigmoid(+-(r - delta)) with r = beta (log policy - log reference) (Jung et al. 2024,
    arXiv:2404.04656)."""

    type: Literal["bco"] = "bco"
    beta: float = Field(0.1, gt=0)
    """Weight of the log-ratio: the greater, the closer to the reference (TRL: 0.1)."""
    desirable_weight: float = Field(1.0, gt=0)
    """Weight of a thumb up."""
    undesirable_weight: float = Field(1.0, gt=0)
    """Weight of a thumb down."""
    shift_decay: float = Field(1.0, gt=0, le=1)
    """The reward shift delta is a mean over the steps so far, in which a step counts this many times as much as the one after
    it. 1: all alike (TRL); below 1: a moving average."""


class BCORecipe(ExampleRecipe):
    """`accord bco`: learn from answers with a thumb up or down, as a classifier of both."""

    # TRL's BCOConfig: 5e-7 for full fine-tuning; ten times that with LoRA.
    adapter_learning_rate: ClassVar[float] = 5e-6
    full_learning_rate: ClassVar[float] = 5e-7
    reads: ClassVar[type[Record]] = LabelledResponse

    reference: ReferenceConfig = ReferenceConfig()
    algorithm: BCOConfig = BCOConfig()
