"""Recipes as validated data. Nothing here imports torch, so a typo costs a tenth of a second and not a model load."""

from accord.config.algorithm import AlgorithmConfig, KLConfig, PolicyGradient, PTXConfig, RolloutAlgorithm
from accord.config.base import Section, build, dump, load, merge, parse_overrides
from accord.config.data import DataConfig
from accord.config.model import CriticConfig, LoraConfig, ModelConfig, ReferenceConfig
from accord.config.recipe import ExampleRecipe, Recipe, RolloutRecipe
from accord.config.recipes import (
    RECIPES,
    DistillConfig,
    DistillRecipe,
    GRPOConfig,
    GRPORecipe,
    PPOConfig,
    PPORecipe,
    ReinforceConfig,
    ReinforceRecipe,
    RejectionConfig,
    RejectionRecipe,
    ReMaxConfig,
    ReMaxRecipe,
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
    "DistillConfig",
    "DistillRecipe",
    "ExampleRecipe",
    "ExampleTrain",
    "GRPOConfig",
    "GRPORecipe",
    "KLConfig",
    "LoraConfig",
    "ModelConfig",
    "PPOConfig",
    "PPORecipe",
    "PTXConfig",
    "PlacementConfig",
    "PolicyGradient",
    "RLOOConfig",
    "RLOORecipe",
    "ReMaxConfig",
    "ReMaxRecipe",
    "Recipe",
    "ReferenceConfig",
    "ReinforceConfig",
    "ReinforceRecipe",
    "RejectionConfig",
    "RejectionRecipe",
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
