"""Options of `accord dpo`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config.algorithm import AlgorithmConfig
from accord.config.model import ReferenceConfig
from accord.config.recipe import ExampleRecipe
from accord.types import PreferencePair, Record

OF_DIFFERENCE = ("sigmoid", "hinge", "ipo", "robust", "exo", "discopop")
"""Losses that see a pair only through the difference of its two scores."""
SMOOTHED = ("sigmoid", "robust", "exo", "aot", "aot_unpaired")
"""Losses that have a label smoothing."""
WITH_MARGIN = ("sigmoid", "hinge", "robust")
"""Losses that demand a difference, and so can demand a larger one."""


class DPOConfig(AlgorithmConfig):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) and its family."""

    type: Literal["dpo"] = "dpo"
    loss: Literal[
        "sigmoid",
        "hinge",
        "ipo",
        "robust",
        "exo",
        "nca",
        "sppo",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
    ] = "sigmoid"
    """What is made of the log-ratios of a pair; the formulas are in `losses/dpo.py`."""
    beta: float = Field(0.1, gt=0)
    """How strongly the policy is held to the reference: small lets it go far (Rafailov et al.: 0.1). IPO's tau, and 1 / SPPO's
    eta."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs taken to be labelled the wrong way round. `sigmoid`, `aot`: conservative (cDPO). `robust`: unbiased
    (arXiv:2403.00409; 0.1 if not given). `exo`: must be above 0 (arXiv:2402.00856; 0.001 if not given)."""
    length_normalize: bool = False
    """Log-ratios are divided by the number of answer tokens. On by default for `ipo`, as its authors ran it."""
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    """What holds the policy to the reference (f-DPO, Wang et al. 2023, arXiv:2309.16240)."""
    f_alpha: float = Field(0.5, gt=0, lt=1)
    """Of `alpha`: near 0 it is the reverse KL, near 1 the forward KL."""
    discopop_tau: float = Field(0.05, gt=0, le=1)
    """Temperature of DiscoPOP's blend (arXiv:2406.08414: 0.05)."""
    sft_coef: float = Field(0.0, ge=0)
    """Weight of the negative log-likelihood of the chosen answer, per token (RPO, arXiv:2404.19733: 1)."""
    margin_coef: float = Field(0.0, ge=0)
    """Weight of the data's `margin`, which is then demanded of the difference of rewards (ODPO, arXiv:2402.10571)."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_loss(cls, value: Any) -> Any:
        """Fill in what the chosen loss has of its own, so that the saved config says what ran."""
        if not isinstance(value, dict):
            return value
        own: dict[str, dict[str, Any]] = {
            "robust": {"label_smoothing": 0.1},
            "exo": {"label_smoothing": 1e-3},
            "ipo": {"length_normalize": True},
        }
        loss = value.get("loss")
        return {**own.get(loss, {}), **value} if isinstance(loss, str) else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.f_divergence != "reverse_kl" and self.loss not in OF_DIFFERENCE:
            raise ValueError(
                f"f_divergence: {self.f_divergence} is defined for losses of a difference of scores "
                f"({', '.join(OF_DIFFERENCE)}); {self.loss} takes each log-ratio by itself, so it goes with reverse_kl alone"
            )
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise ValueError(
                f"label_smoothing is defined for {', '.join(SMOOTHED)}; {self.loss} has none, so it must be 0 "
                f"(given: {self.label_smoothing})"
            )
        if self.f_divergence != "alpha":
            self.refuse_idle(("f_alpha",), f"it is of f_divergence: alpha, and here that is {self.f_divergence}")
        if self.loss != "discopop":
            self.refuse_idle(("discopop_tau",), f"it is of loss: discopop, and the loss here is {self.loss}")
        if self.loss == "exo" and self.label_smoothing == 0:
            raise ValueError("exo takes the logarithm of label_smoothing, so it must be above 0 (its authors: 0.001)")
        if self.margin_coef and self.loss not in WITH_MARGIN:
            raise ValueError(f"margin_coef is defined for {', '.join(WITH_MARGIN)}; {self.loss} demands no margin")
        return self


class DPORecipe(ExampleRecipe):
    """`accord dpo`: learn from pairs of answers, without a reward model and without sampling."""

    # TRL's examples: 5e-6 with LoRA; Zephyr and TRL: 5e-7 for full fine-tuning.
    adapter_learning_rate: ClassVar[float] = 5e-6
    full_learning_rate: ClassVar[float] = 5e-7
    reads: ClassVar[type[Record]] = PreferencePair

    reference: ReferenceConfig | None = ReferenceConfig()
    """What the policy is compared with; `null`: with nothing, its log-probabilities are taken as 0."""
    algorithm: DPOConfig = DPOConfig()

    @model_validator(mode="after")
    def _reference_is_needed(self) -> Self:
        algorithm = self.algorithm
        if self.reference is None and algorithm.loss not in OF_DIFFERENCE:
            raise ValueError(
                f"algorithm.loss: {algorithm.loss} compares each answer with the reference, so `reference: null` goes only "
                f"with {', '.join(OF_DIFFERENCE)}"
            )
        if self.reference is None and algorithm.f_divergence != "reverse_kl":
            raise ValueError(
                f"algorithm.f_divergence: {algorithm.f_divergence} measures how far the policy is from the reference, and "
                "`reference: null` names none"
            )
        return self
