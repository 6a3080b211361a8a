"""Options of `accord sft`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import ClassVar, Literal

from accord.config.algorithm import AlgorithmConfig
from accord.config.recipe import ExampleRecipe
from accord.types import Example, Record


class SFTConfig(AlgorithmConfig):
    """Supervised fine-tuning: negative log-likelihood of the target tokens, averaged over all target tokens of a step."""

    type: Literal["sft"] = "sft"


class SFTRecipe(ExampleRecipe):
    """`accord sft`: learn to write the completions."""

    # TRL's SFTConfig has 2e-5 for full fine-tuning and its guide ten times that for LoRA, as QLoRA does (2e-4).
    adapter_learning_rate: ClassVar[float] = 2e-4
    full_learning_rate: ClassVar[float] = 2e-5
    reads: ClassVar[type[Record]] = Example
    learns_prompts: ClassVar[bool] = True

    algorithm: SFTConfig = SFTConfig()
