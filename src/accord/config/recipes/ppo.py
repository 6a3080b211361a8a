"""Options of `accord ppo`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config.algorithm import PolicyGradient
from accord.config.model import CriticConfig
from accord.config.recipe import RolloutRecipe, given


class PPOConfig(PolicyGradient):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) as classic TRL 0.11 and Ziegler et al. do it on
    language; "tricks" after Huang et al. 2024 (arXiv:2403.17031)."""

    type: Literal["ppo"] = "ppo"
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token (classic TRL: 1)."""
    lam: float = Field(0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation (arXiv:1506.02438; classic TRL: 0.95)."""
    dual_clip: float | None = Field(None, gt=1)
    """For negative advantages the loss of a token is at most this times |A| (Ye et al. 2019, arXiv:1912.09729: 3)."""
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


class PPORecipe(RolloutRecipe):
    """`accord ppo`: sample responses, score them, and make the good ones likelier."""

    # Classic TRL and StackLLaMA: 1.41e-5 with LoRA; TRL's full fine-tuning examples: 3e-6.
    adapter_learning_rate: ClassVar[float] = 1.41e-5
    full_learning_rate: ClassVar[float] = 3e-6
    has_heads: ClassVar[bool] = True

    critic: CriticConfig = CriticConfig()
    algorithm: PPOConfig = PPOConfig()

    def warnings(self) -> list[str]:
        """Those of the sampling, and a policy that never learns."""
        found = super().warnings()
        if self.algorithm.value_warmup >= self.train.iterations:
            found.append(
                f"algorithm.value_warmup ({self.algorithm.value_warmup}) is no less than train.iterations "
                f"({self.train.iterations}): the value function alone will learn, and the policy never"
            )
        return found

    @model_validator(mode="before")
    @classmethod
    def _resolve_critic(cls, value: Any) -> Any:
        """Fill in which critic is used."""
        if not isinstance(value, dict):
            return value
        critic = given(value.get("critic"))
        if isinstance(critic, dict) and critic.get("source") is None:
            full = "adapter" in value and value["adapter"] is None
            value = {**value, "critic": {**critic, "source": "policy_trunk" if full else "adapter"}}
        return value

    @model_validator(mode="after")
    def _critic_fits(self) -> Self:
        if self.critic.source == "adapter" and self.adapter is None:
            raise ValueError(
                "critic.source: adapter needs a frozen base, and `adapter: null` trains the base itself; "
                "use critic.source: policy_trunk, or model with a path"
            )
        if self.critic.start == "reward" and not any(term.paths for term in self.reward):
            raise ValueError("critic.start: reward copies a reward model, and `reward` names none")
        return self
