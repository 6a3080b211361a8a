"""Recipes as validated data. Nothing here imports torch, so a typo costs a tenth of a second and not a model load."""

from accord.config.adapter import (
    METHODS,
    AdaLoraConfig,
    AdapterConfig,
    IA3Config,
    LoraConfig,
    PrefixConfig,
    PromptConfig,
    PTuningConfig,
)
from accord.config.algorithm import (
    GRPOConfig,
    KLConfig,
    PPOConfig,
    ReinforceConfig,
    RewardConfig,
    RLOOConfig,
    RolloutAlgorithm,
    SFTConfig,
)
from accord.config.base import Section, build, dump, load, merge, parse_overrides
from accord.config.data import DataConfig
from accord.config.model import CriticConfig, ModelConfig, ReferenceConfig
from accord.config.recipe import (
    RECIPES,
    GRPORecipe,
    PPORecipe,
    Recipe,
    ReinforceRecipe,
    RewardRecipe,
    RLOORecipe,
    RolloutRecipe,
    SFTRecipe,
)
from accord.config.reward import RewardTerm
from accord.config.rollout import RolloutConfig
from accord.config.train import ExampleTrain, PlacementConfig, RolloutTrain, TrainConfig

__all__ = [
    "METHODS",
    "RECIPES",
    "AdaLoraConfig",
    "AdapterConfig",
    "CriticConfig",
    "DataConfig",
    "ExampleTrain",
    "GRPOConfig",
    "GRPORecipe",
    "IA3Config",
    "KLConfig",
    "LoraConfig",
    "ModelConfig",
    "PPOConfig",
    "PPORecipe",
    "PTuningConfig",
    "PlacementConfig",
    "PrefixConfig",
    "PromptConfig",
    "RLOOConfig",
    "RLOORecipe",
    "Recipe",
    "ReferenceConfig",
    "ReinforceConfig",
    "ReinforceRecipe",
    "RewardConfig",
    "RewardRecipe",
    "RewardTerm",
    "RolloutAlgorithm",
    "RolloutConfig",
    "RolloutRecipe",
    "RolloutTrain",
    "SFTConfig",
    "SFTRecipe",
    "Section",
    "TrainConfig",
    "build",
    "dump",
    "load",
    "merge",
    "parse_overrides",
]
