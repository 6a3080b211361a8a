"""Options of `accord distill`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config.algorithm import RolloutAlgorithm
from accord.config.recipe import RolloutRecipe


class DistillConfig(RolloutAlgorithm):
    """On-policy distillation (generalised knowledge distillation, Agarwal et al. 2023, arXiv:2306.13649): at each token of the
    student's own responses, the divergence of its whole distribution from the teacher's."""

    type: Literal["distill"] = "distill"
    beta: float = Field(0.5, ge=0, le=1)
    """Of the generalised Jensen-Shannon divergence: 0 is the forward KL(teacher || student), 1 the reverse KL(student || teacher)
    (TRL's GKD: 0.5)."""
    on_policy: float = Field(1.0, ge=0, le=1)
    """Share of the iterations that learn from the student's own responses; the others learn from the completions of the data
    (the paper's lambda; 1 is purely on-policy, 0 is distillation on given answers)."""


class DistillRecipe(RolloutRecipe):
    """`accord distill`: the student samples, and learns the teacher's distribution at each token of what it sampled."""

    # TRL's GKD examples: 2e-5 for full fine-tuning; ten times that with LoRA, as for SFT.
    adapter_learning_rate: ClassVar[float] = 2e-4
    full_learning_rate: ClassVar[float] = 2e-5
    needs_reward: ClassVar[bool] = False

    teacher: str
    """Folder or hub name of the teacher: a model or an adapter, with the student's tokenizer."""
    algorithm: DistillConfig = DistillConfig()

    @model_validator(mode="before")
    @classmethod
    def _teacher_is_the_reference(cls, value: Any) -> Any:
        """The teacher takes the reference's role: frozen, and what the student is compared with."""
        if isinstance(value, dict) and isinstance(value.get("teacher"), str) and value.get("reference") is None:
            return {**value, "reference": {"source": "model", "path": value["teacher"]}}
        return value

    @model_validator(mode="after")
    def _one_teacher(self) -> Self:
        if self.reference.path != self.teacher:
            raise ValueError("the teacher is what the student is compared with; leave `reference` out")
        return self
