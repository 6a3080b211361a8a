"""Options of `accord grpo`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config.algorithm import KLConfig, PolicyGradient
from accord.config.recipe import RolloutRecipe


class GRPOConfig(PolicyGradient):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300) and its variants: a response's advantage is its
    score relative to the other responses to its prompt. Needs `rollout.samples` of 2 or more."""

    type: Literal["grpo"] = "grpo"
    kl: KLConfig = KLConfig(use="loss", estimator="k3", coef=0.04, target=None)
    """A k3 term in the loss (DeepSeekMath: 0.04; DAPO and Dr. GRPO: 0, which still logs it)."""
    scale: Literal["group", "batch", "none"] = "group"
    """What divides score minus group mean: the group's standard deviation (DeepSeekMath), the batch's (Lite PPO,
    arXiv:2508.08221), or nothing (Dr. GRPO, arXiv:2503.20783: the first favours prompts that are too easy or too hard)."""
    normalize_each: bool = False
    """Each reward source is brought to mean 0 and standard deviation 1 in its group before they are added up, and the sum over
    the batch (GDPO, arXiv:2601.05242), so that no source drowns another. In place of `scale`."""
    aggregate: Literal["sequence", "token", "constant"] = "sequence"
    """How token losses are averaged: in each response first (DeepSeekMath), over all tokens (DAPO, arXiv:2503.14476), or
    divided by the greatest possible length (Dr. GRPO)."""
    ratio: Literal["token", "sequence"] = "token"
    """What is clipped: each token's ratio, or the length-normalised ratio of the response (GSPO, arXiv:2507.18071; with a clip
    of 3e-4 to 4e-4 there)."""
    clip_high: float | None = Field(None, gt=0)
    """Upper half-width of the free range, if it differs from `clip` (DAPO's clip-higher: 0.28)."""
    dual_clip: float | None = Field(None, gt=1)
    """For negative advantages the loss of a token is at most this times |A| (Ye et al. 2019, arXiv:1912.09729: 3)."""
    surrogate: Literal["clip", "cispo"] = "clip"
    """`clip`: PPO's. `cispo`: REINFORCE with the clipped ratio as a weight without gradient (MiniMax-M1, arXiv:2506.13585)."""
    overlong: int | None = Field(None, ge=1)
    """The last so many tokens before `rollout.max_new_tokens` cost a penalty that grows to 1 (DAPO)."""
    mask_truncated: bool = False
    """Responses that were cut at the limit are not learnt from (DAPO's overlong filtering): they add nothing to the loss, its KL
    term included, nor to what it is divided by. Their group is still compared with them."""

    @property
    def compares_responses(self) -> bool:
        """With their group."""
        return True

    @property
    def compares_each_source(self) -> bool:
        """With `normalize_each`."""
        return self.normalize_each


class GRPORecipe(RolloutRecipe):
    """`accord grpo`: several responses to each prompt; each is judged relative to its group."""

    # TRL's GRPO and DeepSeekMath: 1e-6 for full fine-tuning; ten times that with LoRA.
    adapter_learning_rate: ClassVar[float] = 1e-5
    full_learning_rate: ClassVar[float] = 1e-6
    default_samples: ClassVar[int] = 8

    algorithm: GRPOConfig = GRPOConfig()

    @model_validator(mode="after")
    def _has_groups(self) -> Self:
        self._check_groups()
        if self.algorithm.surrogate == "cispo" and self.algorithm.dual_clip is not None:
            raise ValueError(
                "algorithm.dual_clip bounds the clipped surrogate, and surrogate: cispo has none; leave one of the two out"
            )
        if self.algorithm.overlong is not None and self.algorithm.overlong > self.rollout.max_new_tokens:
            raise ValueError(
                f"algorithm.overlong ({self.algorithm.overlong}) is a part of rollout.max_new_tokens "
                f"({self.rollout.max_new_tokens}), so it cannot be longer"
            )
        if self.algorithm.normalize_each:
            self._check_normalize_each()
        return self

    def _check_normalize_each(self) -> None:
        """What shapes the sum of the scores has nothing to shape when each source is normalised by itself."""
        algorithm, unshaped = self.algorithm, GRPOConfig()
        keys = ("scale", "overlong", "missing_eos_penalty", "reward_scale", "reward_normalize", "reward_clip")
        given = [f"algorithm.{key}" for key in keys if getattr(algorithm, key) != getattr(unshaped, key)]
        given += ["algorithm.kl.use: reward"] if algorithm.kl.use == "reward" else []
        if given:
            raise ValueError(
                f"algorithm.normalize_each normalises each reward by itself, and {', '.join(given)} would change their sum, "
                "which it does not use: take that out, or make it a reward of its own, such as `length`"
            )
