"""Options of `accord simpo`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config.algorithm import AlgorithmConfig
from accord.config.recipe import ExampleRecipe
from accord.types import PreferencePair, Record


class SimPOConfig(AlgorithmConfig):
    """Simple preference optimisation (Meng et al. 2024, arXiv:2405.14734): the reward is the mean log-probability of the
    answer's tokens, without a reference, and the chosen answer has to win by a margin."""

    type: Literal["simpo"] = "simpo"
    loss: Literal["sigmoid", "hinge"] = "sigmoid"
    """`sigmoid`: the paper's. `hinge`: its linear bound."""
    beta: float = Field(2.0, gt=0)
    """Scale of the reward (Meng et al., appendix B: 2 to 2.5, and 10 for instruction-tuned Llama 3)."""
    gamma_beta_ratio: float = Field(0.5, ge=0)
    """Margin by which the mean log-probabilities have to differ, in nats a token; the paper's gamma is this times beta."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs taken to be labelled the wrong way round, as in cDPO."""
    alpha: float = Field(0.0, ge=-2, le=2)
    """AlphaPO's shape of the reward, (1 - p^-alpha) / alpha (Gupta et al. 2025, arXiv:2501.03884: 0.1 to 0.25); 0: log p."""
    sft_coef: float = Field(0.0, ge=0)
    """Weight of the negative log-likelihood of the chosen answer, per token (CPO-SimPO: 1)."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.label_smoothing and self.loss == "hinge":
            raise ValueError("label_smoothing is defined for loss: sigmoid; hinge has none")
        return self


class SimPORecipe(ExampleRecipe):
    """`accord simpo`: learn from pairs of answers without a reference."""

    # Meng et al. train all weights with 3e-7 to 1e-6; ten times that with LoRA.
    adapter_learning_rate: ClassVar[float] = 1e-5
    full_learning_rate: ClassVar[float] = 1e-6
    reads: ClassVar[type[Record]] = PreferencePair

    algorithm: SimPOConfig = SimPOConfig()
