"""Options of `accord rejection`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config.algorithm import RolloutAlgorithm
from accord.config.recipe import RolloutRecipe


class RejectionConfig(RolloutAlgorithm):
    """Rejection sampling, or best-of-n fine-tuning: sample, keep the best, and fine-tune on them (RAFT, Dong et al. 2023,
    arXiv:2304.06767; Llama 2, arXiv:2307.09288, section 3.2.3)."""

    type: Literal["rejection"] = "rejection"
    keep: Literal["best", "threshold", "fraction"] = "best"
    """`best`: the best response to each prompt (RAFT). `threshold`: every one with a score of `threshold` or more (ReST,
    arXiv:2308.08998). `fraction`: the best `fraction` of the batch, whatever their prompts (of each rank's share of it)."""
    threshold: float | None = None
    """For `keep: threshold`."""
    fraction: float = Field(0.25, gt=0, le=1)
    """For `keep: fraction`."""

    @property
    def one_of_a_group(self) -> bool:
        """Whether a group becomes its best response."""
        return self.keep == "best"

    @model_validator(mode="after")
    def _threshold_fits(self) -> Self:
        if (self.keep == "threshold") != (self.threshold is not None):
            raise ValueError("`threshold` goes with `keep: threshold`, and `keep: threshold` needs a `threshold`")
        if self.keep != "fraction":
            self.refuse_idle(("fraction",), f"it is of keep: fraction, and here that is {self.keep}")
        return self


class RejectionRecipe(RolloutRecipe):
    """`accord rejection`: several responses to each prompt; the best are learnt as examples are."""

    # What is learnt is learnt as `accord sft` learns it, at its rates.
    adapter_learning_rate: ClassVar[float] = 2e-4
    full_learning_rate: ClassVar[float] = 2e-5
    default_samples: ClassVar[int] = 4

    algorithm: RejectionConfig = RejectionConfig()

    @model_validator(mode="after")
    def _has_groups(self) -> Self:
        if self.algorithm.keep == "best":
            self._check_groups()
            prompts = self.train.batch_size // self.rollout.samples
            if prompts < self.algorithm.minibatches:
                raise ValueError(
                    f"{prompts} kept responses (train.batch_size / rollout.samples) cannot be cut into "
                    f"{self.algorithm.minibatches} minibatches (algorithm.minibatches)"
                )
        return self
