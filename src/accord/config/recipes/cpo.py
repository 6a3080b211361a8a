"""Options of `accord cpo`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config.algorithm import AlgorithmConfig
from accord.config.recipe import ExampleRecipe
from accord.types import PreferencePair, Record


class CPOConfig(AlgorithmConfig):
    """Contrastive preference optimisation (Xu et al. 2024, arXiv:2401.08417): DPO with a uniform reference, and a term that
    keeps the chosen answer likely."""

    type: Literal["cpo"] = "cpo"
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """`sigmoid`: the paper's equation 3. `hinge`: SLiC's (arXiv:2305.10425). `ipo`: a squared distance (arXiv:2310.12036)."""
    beta: float = Field(0.1, gt=0)
    """Scale of the log-probabilities (Xu et al.: 0.1); IPO's tau."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs taken to be labelled the wrong way round, as in cDPO."""
    length_normalize: bool = False
    """Log-probabilities are divided by the number of answer tokens. On by default for `ipo`."""
    sft_coef: float = Field(1.0, ge=0)
    """Weight of the negative log-likelihood of the chosen answer, per token (Xu et al.: 1)."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_loss(cls, value: Any) -> Any:
        """Fill in what the chosen loss has of its own, so that the saved config says what ran."""
        return {"length_normalize": True, **value} if isinstance(value, dict) and value.get("loss") == "ipo" else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing is defined for loss: sigmoid; {self.loss} has none")
        return self


class CPORecipe(ExampleRecipe):
    """`accord cpo`: learn from pairs of answers without a reference, and keep the chosen ones likely."""

    # TRL's CPOConfig: 1e-6 for full fine-tuning; ten times that with LoRA.
    adapter_learning_rate: ClassVar[float] = 1e-5
    full_learning_rate: ClassVar[float] = 1e-6
    reads: ClassVar[type[Record]] = PreferencePair

    algorithm: CPOConfig = CPOConfig()
