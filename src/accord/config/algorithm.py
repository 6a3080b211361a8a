"""One model per algorithm, keyed on `type`. The defaults are the vetted setting; each says where it comes from."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from accord.config.base import Section


class SFTConfig(Section):
    """Supervised fine-tuning: negative log-likelihood of the target tokens, averaged over all target tokens of a step."""

    type: Literal["sft"] = "sft"


class RewardConfig(Section):
    """Bradley-Terry reward model: -log sigmoid(r_chosen - r_rejected - margin) (Stiennon et al. 2020, arXiv:2009.01325;
    margin: Llama 2, arXiv:2307.09288, equation 2)."""

    type: Literal["reward"] = "reward"
    centre_coef: float = Field(0.01, ge=0)
    """Weight of (r_chosen + r_rejected)^2, which keeps scores around 0 (Eisenstein et al. 2023, arXiv:2312.09244, who use
    0.01). 0 turns it off."""


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
        return self


class RolloutAlgorithm(Section):
    """What all algorithms that learn from rollouts have: how scores are shaped, and how many steps a batch is used for."""

    kl: KLConfig = KLConfig()
    clip: float = Field(0.2, gt=0)
    """The ratio is clipped to [1 - clip, 1 + clip] (PPO paper: 0.2)."""
    epochs: int = Field(1, ge=1)
    """Passes over each batch of rollouts."""
    minibatches: int = Field(1, ge=1)
    """Optimiser steps in each pass."""
    reward_scale: float = 1.0
    """Scores are multiplied by this first."""
    reward_normalize: bool = False
    """Then brought to mean 0 and variance 1 of all scores seen so far."""
    reward_clip: float | None = Field(None, gt=0)
    """Then clipped to [-reward_clip, reward_clip] (DeepSpeed-Chat 5, OpenRLHF 10)."""
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


class PPOConfig(RolloutAlgorithm):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) as classic TRL 0.11 and Ziegler et al. do it on
    language; "tricks" after Huang et al. 2024 (arXiv:2403.17031)."""

    type: Literal["ppo"] = "ppo"
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token (classic TRL: 1)."""
    lam: float = Field(0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation (arXiv:1506.02438; classic TRL: 0.95)."""
    value_clip: float | None = Field(0.2, gt=0)
    """New values stay within this distance of the old ones in the value loss (classic TRL: 0.2); `null` turns it off."""
    value_coef: float = Field(0.1, ge=0)
    """Weight of the value loss (classic TRL: 0.1)."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus (TRL: none)."""
    epochs: int = Field(4, ge=1)
    """Passes over each batch of rollouts (classic TRL: 4)."""
    minibatches: int = Field(4, ge=1)
    """Optimiser steps in each pass (classic TRL: 4)."""
    value_warmup: int = Field(0, ge=0)
    """Iterations at the start in which only the value function learns (OpenRLHF's `freezing_steps`)."""
    whiten_advantages: bool = True
    """Advantages get mean 0 and variance 1 over the whole batch and all ranks (Huang et al., detail 7)."""
    whiten_rewards: bool = False
    """Rewards get variance 1, their mean kept, over the whole batch and all ranks (classic TRL: off)."""


class RLOOConfig(RolloutAlgorithm):
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740): the baseline of a response is the mean score of the
    other responses to its prompt; no critic. Needs `rollout.samples` of 2 or more."""

    type: Literal["rloo"] = "rloo"
    kl: KLConfig = KLConfig(coef=0.05, target=None)
    """In the reward by default (TRL's RLOO: 0.05)."""


class GRPOConfig(RolloutAlgorithm):
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
    """Responses that were cut at the limit are not learnt from (DAPO's overlong filtering)."""


class ReinforceConfig(RolloutAlgorithm):
    """REINFORCE++ (Hu 2025, arXiv:2501.03262): the return of each token (score, minus the KL penalties from it on), whitened
    over the whole batch, with PPO's clipped loss; no critic."""

    type: Literal["reinforce"] = "reinforce"
    kl: KLConfig = KLConfig(coef=0.01, target=None)
    """In the reward by default (OpenRLHF's examples: 0.01)."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token (OpenRLHF: 1)."""
    baseline: bool = False
    """Subtract the mean score of the prompt's responses first (REINFORCE++ with baseline; needs `rollout.samples` >= 2)."""


AlgorithmConfig = SFTConfig | RewardConfig | PPOConfig | RLOOConfig | GRPOConfig | ReinforceConfig
