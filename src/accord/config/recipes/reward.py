"""Options of `accord reward`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config.algorithm import AlgorithmConfig
from accord.config.recipe import ExampleRecipe
from accord.types import PreferencePair, Record, StepwiseExample


class RewardConfig(AlgorithmConfig):
    """Reward model of answers: -log sigmoid(r_chosen - r_rejected - margin) (Stiennon et al. 2020, arXiv:2009.01325; margin:
    Llama 2, arXiv:2307.09288, equation 2); or of steps: cross-entropy of each step's label (Lightman et al. 2023,
    arXiv:2305.20050)."""

    type: Literal["reward"] = "reward"
    centre_coef: float = Field(0.01, ge=0)
    """Weight of (r_chosen + r_rejected)^2, which keeps scores around 0 (Eisenstein et al. 2023, arXiv:2312.09244, who use
    0.01). 0 turns it off."""
    level: Literal["response", "step"] = "response"
    """What is scored: a whole answer, learnt from pairs; or each step of one, from rows with `completions` and `labels`."""
    step: str = Field("\n", min_length=1)
    """With `level: step`: the text between two steps. It is stored with the model, and finds the steps of responses in RL."""
    normalize: Literal["none", "all", "chosen"] = "none"
    """Store with the model the mean and standard deviation of its scores of all answers, or of the chosen ones alone (so that
    these score 0 on average: InstructGPT, arXiv:2203.02155, section 3.5). Held-out rows are used if there are any. RL then sees
    (score - mean) / standard deviation; the saved weights are as without it."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.level == "step" and self.normalize != "none":
            raise ValueError("`normalize` is for `level: response`; a step's score becomes a probability as it is")
        return self


class RewardRecipe(ExampleRecipe):
    """`accord reward`: learn which of two answers people prefer, or which steps of an answer are good."""

    # TRL's RewardConfig and OpenRLHF: 1e-4 with LoRA, 9e-6 to 1e-5 for full fine-tuning.
    adapter_learning_rate: ClassVar[float] = 1e-4
    full_learning_rate: ClassVar[float] = 1e-5
    has_heads: ClassVar[bool] = True
    reads: ClassVar[type[Record]] = PreferencePair

    algorithm: RewardConfig = RewardConfig()

    @property
    def rows_become(self) -> type[Record]:
        """What a row of its data becomes, with these settings."""
        return StepwiseExample if self.algorithm.level == "step" else PreferencePair
