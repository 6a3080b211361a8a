"""What whole recipes share, and the checks that look across sections. Each algorithm's own is in `config.recipes`."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from accord.config.adapter import METHODS, AdapterConfig, LoraConfig, check_steps, method_of
from accord.config.algorithm import AlgorithmConfig, PTXConfig, RolloutAlgorithm
from accord.config.base import Section, from_home
from accord.config.data import DataConfig
from accord.config.model import ModelConfig, ReferenceConfig
from accord.config.reward import RewardTerm, refuse_same_labels
from accord.config.rollout import RolloutConfig
from accord.config.train import ExampleTrain, PlacementConfig, RolloutTrain, TrainConfig
from accord.types import Prompt, Record


def given(section: Any) -> Any:
    """The keys that were given of a section, be it a mapping, an object or nothing."""
    return section.model_dump(exclude_unset=True) if isinstance(section, Section) else section or {}


class Recipe(Section):
    """What every recipe has."""

    adapter_learning_rate: ClassVar[float]
    full_learning_rate: ClassVar[float]
    reads: ClassVar[type[Record]]
    """What a row of its data becomes."""
    has_heads: ClassVar[bool] = False
    """Whether a value or score head learns."""
    learns_prompts: ClassVar[bool] = False
    """Whether `data.train_on: all` means anything to it."""

    model: ModelConfig
    adapter: AdapterConfig | None = LoraConfig()
    """The adapter that learns; `null` trains all weights."""
    data: DataConfig
    algorithm: AlgorithmConfig
    train: TrainConfig
    placement: PlacementConfig = PlacementConfig()
    output: str
    """Run directory: config, metrics, checkpoints, the model and the report go there."""
    push: str | None = None
    """Repository on the Hugging Face hub, such as `me/my-model`: the model is pushed there when the run ends. A repository that
    is not there yet is made, private."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Same seed, same run."""

    @field_validator("output")
    @classmethod
    def _is_a_folder(cls, output: str) -> str:
        """`~` is the home folder; a text without a name would be the folder that the command was given in."""
        if not output.strip():
            raise ValueError("a run needs a folder of its own, such as runs/ppo")
        return from_home(output)

    @model_validator(mode="before")
    @classmethod
    def _resolve_learning_rate(cls, value: Any) -> Any:
        """Fill in the recipe's own learning rate, so that the saved config says what ran."""
        if not isinstance(value, dict):
            return value
        train = given(value.get("train"))
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
        reference = getattr(self, "reference", None)
        if reference is not None and reference.source == "shared_layers" and self.adapter is not None:
            raise ValueError(
                "reference.source: shared_layers is for full fine-tuning (adapter: null); with an adapter policy and reference "
                "share the whole base already"
            )
        return self

    @model_validator(mode="after")
    def _memory_fits(self) -> Self:
        if self.model.quantize != "none" and self.adapter is None:
            raise ValueError(
                f"model.quantize: {self.model.quantize} freezes the weights, and `adapter: null` trains them: give an adapter, "
                "such as adapter.method: lora, or model.quantize: none"
            )
        reference = getattr(self, "reference", None)
        if reference is not None and reference.offload and reference.source == "start" and self.adapter is not None:
            raise ValueError(
                "reference.offload: with an adapter the reference reads the policy's own base, so there is nothing to move; "
                "leave it out"
            )
        if self.train.activation_checkpointing and method_of(self.adapter) == "prefix":
            raise ValueError(
                "train.activation_checkpointing: prefix tuning keeps its virtual tokens in a cache, which layers that are "
                "computed again do not see; use adapter.method: lora, prompt or ptuning, or leave it off"
            )
        return self

    @model_validator(mode="after")
    def _rates_fit(self) -> Self:
        if self.train.lora_plus_ratio is not None and self.adapter is None:
            raise ValueError(
                "train.lora_plus_ratio is about LoRA's two matrices, and `adapter: null` trains the base itself"
            )
        if self.train.head_learning_rate is not None and not self.has_heads:
            raise ValueError(f"train.head_learning_rate: {self.algorithm.type} has no value or score head that learns")
        return self

    @model_validator(mode="after")
    def _data_is_read(self) -> Self:
        if self.data.train_on != "completion" and not self.learns_prompts:
            raise ValueError(
                f"data.train_on: {self.data.train_on} is about imitating texts (accord sft, accord csft); {self.algorithm.type} "
                "learns from completions alone: leave it out"
            )
        return self

    @property
    def rows_become(self) -> type[Record] | None:
        """What a row of its data becomes, with these settings; `None`: what its columns make of it."""
        return self.reads

    def warnings(self) -> list[str]:
        """Settings that run, but seldom do what is wanted."""
        return []


class ExampleRecipe(Recipe):
    """What every recipe has that learns from rows that are there already."""

    train: ExampleTrain = ExampleTrain()

    @model_validator(mode="after")
    def _evaluates(self) -> Self:
        if self.train.eval_every and self.data.eval_path is None and not self.data.eval_fraction:
            raise ValueError(
                f"train.eval_every: {self.train.eval_every} evaluates held-out rows, and none are held out: give data.eval_path "
                "or data.eval_fraction, or leave it out"
            )
        return self


class RolloutRecipe(Recipe):
    """What every recipe has that samples, scores and learns."""

    reads: ClassVar[type[Record]] = Prompt
    default_samples: ClassVar[int] = 1
    """`rollout.samples` when the recipe does not give it."""
    needs_reward: ClassVar[bool] = True
    """Whether it learns from scores."""

    reference: ReferenceConfig = ReferenceConfig()
    reward: tuple[RewardTerm, ...] = ()
    rollout: RolloutConfig = RolloutConfig()
    ptx: PTXConfig | None = None
    """Text to go on learning beside the rewards; `null`: none."""
    algorithm: RolloutAlgorithm
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
        rollout = given(value.get("rollout"))
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
        refuse_same_labels(self.reward)
        if self.train.batch_size % self.rollout.samples:
            raise ValueError(
                f"train.batch_size ({self.train.batch_size}) counts responses, so it must be a multiple of "
                f"rollout.samples ({self.rollout.samples})"
            )
        if self.rollout.dynamic_sampling and self.rollout.samples < 2:
            raise ValueError(
                "rollout.dynamic_sampling drops groups whose responses all have one score, and rollout.samples: 1 makes every "
                "group such a one; use samples of 2 or more"
            )
        if self.rollout.dynamic_sampling and not self.algorithm.compares_responses:
            raise ValueError(
                f"rollout.dynamic_sampling drops groups whose responses all have one score, and {self.algorithm.type} as it is "
                "set here learns from such groups, too; leave it out"
            )
        if self.rollout.merge_adapter is True and not _merges(self.adapter):
            raise ValueError(
                "rollout.merge_adapter: true folds a LoRA adapter into the base while sampling, and needs adapter.method lora "
                "without dora, or adalora; leave it at auto, which folds in where that can be done"
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
        """Longest prompt, in tokens: what `data.max_tokens` leaves beside the response, at most `data.max_prompt_tokens`."""
        room = self.data.max_tokens - self.rollout.max_new_tokens
        return min(self.data.max_prompt_tokens or room, room)

    def warnings(self) -> list[str]:
        """Settings that run, but seldom do what is wanted."""
        return self.rollout.warnings()

    def _check_groups(self) -> None:
        if self.rollout.samples < 2:
            raise ValueError(
                f"{self.algorithm.type} compares the responses to one prompt, so rollout.samples must be 2 or more "
                f"(given: {self.rollout.samples}); ppo and reinforce need no groups"
            )


def _merges(adapter: AdapterConfig | None) -> bool:
    """Whether an adapter adds a matrix to each layer's."""
    return adapter is not None and adapter.method in ("lora", "adalora") and not getattr(adapter, "dora", False)
