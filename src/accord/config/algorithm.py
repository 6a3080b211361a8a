"""What the algorithms' own options share. The defaults are the vetted setting; each says where it comes from."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from accord.config.base import Section
from accord.config.data import DataConfig


class AlgorithmConfig(Section):
    """One class per algorithm, named by `type`."""

    type: str


class KLConfig(Section):
    """Divergence from the reference. Ziegler et al. 2019 (arXiv:1909.08593) section 2.2 for coefficient, target, horizon;
    estimators: Schulman 2020, "Approximating KL divergence"."""

    estimator: Literal["k1", "k2", "k3", "abs", "mse", "full"] = "k1"
    """Per token, with d = log policy - log reference: k1 = d; k2 = mse = d^2/2; k3 = exp(-d) - 1 + d; abs = |d|;
    full = the exact sum over the vocabulary. With `use: loss` the default is k2, whose gradient is that of the KL."""
    coef: float = Field(0.2, ge=0)
    """Weight (classic TRL's and Ziegler's start value)."""
    target: float | None = Field(6.0, gt=0)
    """Nats a response that the adaptive controller steers to (classic TRL and Ziegler: 6); `null` keeps `coef` fixed."""
    horizon: float = Field(10_000, gt=0)
    """Samples over which the controller reacts (classic TRL and Ziegler: 10,000)."""
    use: Literal["reward", "loss"] = "reward"
    """`reward`: subtracted from each token's reward. `loss`: added to the loss instead."""

    @model_validator(mode="before")
    @classmethod
    def _loss_default(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("use") == "loss" and "estimator" not in value:
            return {**value, "estimator": "k2"}
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.use == "loss" and self.estimator in ("k1", "abs", "full"):
            why = {
                "k1": "its gradient is 0 on average",
                "abs": "its gradient is not that of a divergence",
                "full": "the reference's whole distribution is not kept until the update",
            }[self.estimator]
            raise ValueError(
                f"estimator {self.estimator} cannot be a loss term ({why}); use k2 or k3, or `use: reward`"
            )
        if self.target is None:
            self.refuse_idle(("horizon",), "it is of the adaptive coefficient, and target: null keeps that fixed")
        return self


class PTXConfig(Section):
    """A language-modelling loss on rows of text, added to each step of the policy (Ouyang et al. 2022, arXiv:2203.02155,
    equation 2: PPO-ptx), against forgetting."""

    data: DataConfig
    """Rows to learn as `accord sft` learns them: text, prompt and completion, or messages."""
    coef: float = Field(0.05, ge=0)
    """Weight of the mean over these tokens beside the policy loss, which is a mean over its own (OpenRLHF: 0.05; InstructGPT:
    27.8)."""
    batch_size: int = Field(16, ge=1)
    """Rows of one optimiser step, over all ranks."""

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        if self.data.eval_path is not None or self.data.eval_fraction:
            raise ValueError("ptx.data: rows are only learnt from here, so eval_path and eval_fraction have no meaning")
        return self


class RolloutAlgorithm(AlgorithmConfig):
    """What all algorithms that learn from rollouts have: how many steps a batch is used for."""

    epochs: int = Field(1, ge=1)
    """Passes over each batch of rollouts."""
    minibatches: int = Field(1, ge=1)
    """Optimiser steps in each pass."""

    @property
    def one_of_a_group(self) -> bool:
        """Whether the responses to a prompt become one thing to learn, which cannot be cut."""
        return False

    @property
    def compares_responses(self) -> bool:
        """Whether a group whose responses all have one score teaches nothing."""
        return self.one_of_a_group

    @property
    def compares_each_source(self) -> bool:
        """Whether responses are compared by what each reward source says, instead of by the sum."""
        return False


class PolicyGradient(RolloutAlgorithm):
    """What all policy gradients have: how scores are shaped, and how far a batch may carry the policy."""

    kl: KLConfig = KLConfig()
    clip: float = Field(0.2, gt=0)
    """The ratio is clipped to [1 - clip, 1 + clip] (PPO paper: 0.2)."""
    kl_stop: float | None = Field(None, gt=0)
    """After a step whose approximate KL from the old policy (`ppo/policy/approxkl`, nats a token) exceeds this, the other steps
    of the iteration are left out (Spinning Up and Stable-Baselines3 stop at 1.5 x their `target_kl` of 0.01); `null`: never."""
    correction: Literal["none", "truncate", "mask"] = "none"
    """Importance weights for what the sampler drew otherwise than the trainer would have (other kernels, lagging weights):
    `truncate`: p_old / p_sampler, at most `correction_cap` (Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training"); `mask`: 0 where it is outside [1 / cap, cap] (IcePop)."""
    correction_cap: float = Field(2.0, gt=1)
    """Bound of these weights (Yao et al.: 2)."""
    correction_level: Literal["token", "sequence"] = "token"
    """Whether each token has its weight, or a response that of all its tokens together."""
    reward_scale: float = 1.0
    """Scores are multiplied by this first; scores of single tokens, too."""
    reward_normalize: bool = False
    """Then scores of responses are brought to mean 0 and variance 1 of all seen so far."""
    reward_clip: float | None = Field(None, gt=0)
    """Then they are clipped to [-reward_clip, reward_clip] (DeepSpeed-Chat 5, OpenRLHF 10)."""
    missing_eos_penalty: float | None = Field(None, ge=0)
    """Subtracted from the score of a response that did not end by itself (TRL's examples: 1)."""
    ratio_guard: float | None = Field(10.0, gt=1)
    """A step whose mean ratio exceeds this is skipped and counted (classic TRL's `ratio_threshold`: 10); `null`: never."""

    @model_validator(mode="before")
    @classmethod
    def _own_kl(cls, value: Any) -> Any:
        """Keys of `kl` that are not given keep this algorithm's defaults, and not those of `KLConfig`."""
        if not isinstance(value, dict) or not isinstance(value.get("kl"), dict):
            return value
        default: KLConfig = cls.model_fields["kl"].default
        return {**value, "kl": {**default.model_dump(exclude_unset=True), **value["kl"]}}

    @model_validator(mode="after")
    def _correction_fits(self) -> Self:
        if self.correction == "none":
            self.refuse_idle(
                ("correction_cap", "correction_level"), "there are no importance weights with correction: none"
            )
        return self
