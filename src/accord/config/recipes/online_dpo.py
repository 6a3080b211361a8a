"""Options of `accord online_dpo`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config.algorithm import RolloutAlgorithm
from accord.config.recipe import RolloutRecipe


class OnlineDPOConfig(RolloutAlgorithm):
    """Direct alignment from online feedback (Guo et al. 2024, arXiv:2402.04792): the policy answers each prompt several times,
    the reward picks the best and the worst, and DPO learns from the pair."""

    type: Literal["online_dpo"] = "online_dpo"
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    """What is made of a pair's log-ratios; the formulas are in `losses/dpo.py`. (The paper tries DPO, IPO and SLiC.)"""
    beta: float = Field(0.1, gt=0)
    """How strongly the policy is held to the reference: small lets it go far (TRL's OnlineDPO: 0.1). IPO's tau."""
    length_normalize: bool = False
    """Log-ratios are divided by the number of answer tokens."""
    missing_eos_penalty: float | None = Field(None, ge=0)
    """Subtracted from the score of a response that did not end by itself (TRL's examples: 1)."""

    @property
    def one_of_a_group(self) -> bool:
        """A group becomes a pair."""
        return True


class OnlineDPORecipe(RolloutRecipe):
    """`accord online_dpo`: sample two answers, let the reward choose, learn the choice."""

    # TRL's OnlineDPO: 5e-7 for full fine-tuning; ten times that with LoRA, as for DPO.
    adapter_learning_rate: ClassVar[float] = 5e-6
    full_learning_rate: ClassVar[float] = 5e-7
    default_samples: ClassVar[int] = 2

    algorithm: OnlineDPOConfig = OnlineDPOConfig()

    @model_validator(mode="after")
    def _has_groups(self) -> Self:
        self._check_groups()
        pairs = self.train.batch_size // self.rollout.samples
        if pairs < self.algorithm.minibatches:
            raise ValueError(
                f"{pairs} pairs (train.batch_size / rollout.samples) cannot be cut into {self.algorithm.minibatches} minibatches "
                "(algorithm.minibatches)"
            )
        return self
