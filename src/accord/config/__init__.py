"""Recipes as validated data. Nothing here imports torch, so a typo costs a tenth of a second and not a model load."""

from accord.config.algorithm import AlgorithmConfig, KLConfig, PolicyGradient, PTXConfig, RolloutAlgorithm
from accord.config.base import Section, build, dump, load, merge, parse_overrides
from accord.config.data import DataConfig
from accord.config.model import CriticConfig, LoraConfig, ModelConfig, ReferenceConfig
from accord.config.optim import OptimizerConfig, ScheduleConfig
from accord.config.recipe import ExampleRecipe, Recipe, RolloutRecipe
from accord.config.recipes import (
    RECIPES,
    GRPOConfig,
    GRPORecipe,
    PPOConfig,
    PPORecipe,
    ReinforceConfig,
    ReinforceRecipe,
    RewardConfig,
    RewardRecipe,
    RLOOConfig,
    RLOORecipe,
    SFTConfig,
    SFTRecipe,
)
from accord.config.reward import RewardTerm
from accord.config.rollout import RolloutConfig
from accord.config.train import ExampleTrain, PlacementConfig, RolloutTrain, TrainConfig

__all__ = [
    "RECIPES",
    "AlgorithmConfig",
    "CriticConfig",
    "DataConfig",
    "ExampleRecipe",
    "ExampleTrain",
    "GRPOConfig",
    "GRPORecipe",
    "KLConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PPOConfig",
    "PPORecipe",
    "PTXConfig",
    "PlacementConfig",
    "PolicyGradient",
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
    "ScheduleConfig",
    "Section",
    "TrainConfig",
    "build",
    "dump",
    "load",
    "merge",
    "parse_overrides",
]
