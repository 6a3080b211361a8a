"""Whole recipes: one class per training command, a literal dict of them, and the checks that look across sections."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from accord.config.adapter import METHODS, AdapterConfig, LoraConfig, check_steps, method_of
from accord.config.algorithm import (
    AlgorithmConfig,
    GRPOConfig,
    PPOConfig,
    ReinforceConfig,
    RewardConfig,
    RLOOConfig,
    SFTConfig,
)
from accord.config.base import Section
from accord.config.data import DataConfig
from accord.config.model import CriticConfig, ModelConfig, ReferenceConfig
from accord.config.reward import RewardTerm
from accord.config.rollout import RolloutConfig
from accord.config.train import ExampleTrain, PlacementConfig, RolloutTrain, TrainConfig


def _given(section: Any) -> Any:
    """The keys that were given of a section, be it a mapping, an object or nothing."""
    return section.model_dump(exclude_unset=True) if isinstance(section, Section) else section or {}


RolloutAlgorithms = PPOConfig | RLOOConfig | GRPOConfig | ReinforceConfig


class Recipe(Section):
    """What every recipe has."""

    adapter_learning_rate: ClassVar[float]
    full_learning_rate: ClassVar[float]

    model: ModelConfig
    adapter: AdapterConfig | None = LoraConfig()
    """The adapter that learns; `null` trains all weights."""
    data: DataConfig
    algorithm: AlgorithmConfig
    train: TrainConfig
    placement: PlacementConfig = PlacementConfig()
    output: str
    """Run directory: config, metrics, checkpoints, the model and the report go there."""
    seed: int = Field(0, ge=0)
    """Same seed, same run."""

    @model_validator(mode="before")
    @classmethod
    def _resolve_learning_rate(cls, value: Any) -> Any:
        """Fill in the recipe's own learning rate, so that the saved config says what ran."""
        if not isinstance(value, dict):
            return value
        train = _given(value.get("train"))
        if not isinstance(train, dict) or train.get("learning_rate") is not None:
            return value
        if "adapter" in value and value["adapter"] is None:
            rate = cls.full_learning_rate
        else:
            method = METHODS.get(method_of(value.get("adapter", {})) or "")
            rate = float(f"{cls.adapter_learning_rate * (method.learning_rate_factor if method else 1.0):.3g}")
        return {**value, "train": {**train, "learning_rate": rate}}

    @model_validator(mode="after")
    def _adapter_fits(self) -> Self:
        check_steps(self.adapter, self.train, self.algorithm)
        return self

    def warnings(self) -> list[str]:
        """Settings that run, but seldom do what is wanted."""
        return []


class SFTRecipe(Recipe):
    """`accord sft`: learn to write the completions."""

    # TRL's SFTConfig has 2e-5 for full fine-tuning and its guide ten times that for LoRA, as QLoRA does (2e-4).
    adapter_learning_rate: ClassVar[float] = 2e-4
    full_learning_rate: ClassVar[float] = 2e-5

    algorithm: SFTConfig = SFTConfig()
    train: ExampleTrain = ExampleTrain()


class RewardRecipe(Recipe):
    """`accord reward`: learn which of two answers people prefer."""

    # TRL's RewardConfig and OpenRLHF: 1e-4 with LoRA, 9e-6 to 1e-5 for full fine-tuning.
    adapter_learning_rate: ClassVar[float] = 1e-4
    full_learning_rate: ClassVar[float] = 1e-5

    algorithm: RewardConfig = RewardConfig()
    train: ExampleTrain = ExampleTrain()


class RolloutRecipe(Recipe):
    """What every recipe has that samples, scores and learns."""

    default_samples: ClassVar[int] = 1
    """`rollout.samples` when the recipe does not give it."""

    reference: ReferenceConfig = ReferenceConfig()
    reward: tuple[RewardTerm, ...] = ()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: RolloutAlgorithms
    train: RolloutTrain = RolloutTrain()

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, value: Any) -> Any:
        """Accept one reward where a list is meant, and fill in the algorithm's number of samples."""
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if isinstance(value.get("reward"), (str, dict)):
            value["reward"] = [value["reward"]]
        rollout = _given(value.get("rollout"))
        if isinstance(rollout, dict) and "samples" not in rollout:
            value["rollout"] = {**rollout, "samples": cls.default_samples}
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.data.eval_path is not None or self.data.eval_fraction:
            raise ValueError(
                "data.eval_path and data.eval_fraction hold out rows to evaluate on, which a recipe on rollouts does not do: "
                "its scores are logged each iteration"
            )
        labels = [term.label for term in self.reward]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"two rewards are called {', '.join(twice)}; give each a `name` of its own")
        if self.train.batch_size % self.rollout.samples:
            raise ValueError(
                f"train.batch_size ({self.train.batch_size}) counts responses, so it must be a multiple of "
                f"rollout.samples ({self.rollout.samples})"
            )
        if self.train.batch_size < self.algorithm.minibatches:
            raise ValueError(
                f"{self.train.batch_size} responses (train.batch_size) cannot be cut into "
                f"{self.algorithm.minibatches} minibatches (algorithm.minibatches)"
            )
        if self.prompt_limit < 1:
            raise ValueError(
                f"data.max_tokens ({self.data.max_tokens}) leaves no room for a prompt beside rollout.max_new_tokens "
                f"({self.rollout.max_new_tokens})"
            )
        return self

    @property
    def prompt_limit(self) -> int:
        """Longest prompt, in tokens."""
        return self.data.max_prompt_tokens or self.data.max_tokens - self.rollout.max_new_tokens

    def warnings(self) -> list[str]:
        """Settings that run, but seldom do what is wanted."""
        return self.rollout.warnings()

    def _check_groups(self) -> None:
        if self.rollout.samples < 2:
            raise ValueError(
                f"{self.algorithm.type} compares the responses to one prompt, so rollout.samples must be 2 or more "
                f"(given: {self.rollout.samples}); ppo and reinforce need no groups"
            )


class PPORecipe(RolloutRecipe):
    """`accord ppo`: sample responses, score them, and make the good ones likelier."""

    # Classic TRL and StackLLaMA: 1.41e-5 with LoRA; TRL's full fine-tuning examples: 3e-6.
    adapter_learning_rate: ClassVar[float] = 1.41e-5
    full_learning_rate: ClassVar[float] = 3e-6

    critic: CriticConfig = CriticConfig()
    algorithm: PPOConfig = PPOConfig()

    @model_validator(mode="before")
    @classmethod
    def _resolve_critic(cls, value: Any) -> Any:
        """Fill in which critic is used."""
        if not isinstance(value, dict):
            return value
        critic = _given(value.get("critic"))
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
        if self.critic.start == "reward" and not any(term.model for term in self.reward):
            raise ValueError("critic.start: reward copies a reward model, and `reward` names none")
        return self


class RLOORecipe(RolloutRecipe):
    """`accord rloo`: several responses to each prompt; each is judged by the others' mean."""

    # TRL's RLOO: 1e-6 for full fine-tuning; ten times that with LoRA.
    adapter_learning_rate: ClassVar[float] = 1e-5
    full_learning_rate: ClassVar[float] = 1e-6
    default_samples: ClassVar[int] = 4

    algorithm: RLOOConfig = RLOOConfig()

    @model_validator(mode="after")
    def _has_groups(self) -> Self:
        self._check_groups()
        return self


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
        if self.algorithm.overlong is not None and self.algorithm.overlong > self.rollout.max_new_tokens:
            raise ValueError(
                f"algorithm.overlong ({self.algorithm.overlong}) is a part of rollout.max_new_tokens "
                f"({self.rollout.max_new_tokens}), so it cannot be longer"
            )
        return self


class ReinforceRecipe(RolloutRecipe):
    """`accord reinforce`: REINFORCE++, PPO's loss with whitened returns and no critic."""

    # OpenRLHF's REINFORCE++ examples: 5e-7 for full fine-tuning; ten to twenty times that with LoRA.
    adapter_learning_rate: ClassVar[float] = 1e-5
    full_learning_rate: ClassVar[float] = 5e-7

    algorithm: ReinforceConfig = ReinforceConfig()

    @model_validator(mode="after")
    def _has_groups(self) -> Self:
        if self.algorithm.baseline:
            self._check_groups()
        return self


RECIPES: dict[str, type[Recipe]] = {
    "sft": SFTRecipe,
    "reward": RewardRecipe,
    "ppo": PPORecipe,
    "rloo": RLOORecipe,
    "grpo": GRPORecipe,
    "reinforce": ReinforceRecipe,
}
"""Training command -> its recipe. The CLI, the algorithms and the docs have the same keys."""
