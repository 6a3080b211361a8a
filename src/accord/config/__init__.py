"""Recipes as validated data. Nothing here imports torch, so a typo costs a tenth of a second and not a model load."""

from accord.config.algorithm import KLConfig, PPOConfig, RewardConfig, SFTConfig
from accord.config.base import Section, build, dump, load, merge, parse_overrides
from accord.config.data import DataConfig
from accord.config.model import CriticConfig, LoraConfig, ModelConfig, ReferenceConfig
from accord.config.recipe import RECIPES, PPORecipe, Recipe, RewardRecipe, SFTRecipe
from accord.config.reward import RewardTerm
from accord.config.rollout import RolloutConfig
from accord.config.train import ExampleTrain, PlacementConfig, RolloutTrain, TrainConfig

__all__ = [
    "RECIPES",
    "CriticConfig",
    "DataConfig",
    "ExampleTrain",
    "KLConfig",
    "LoraConfig",
    "ModelConfig",
    "PPOConfig",
    "PPORecipe",
    "PlacementConfig",
    "Recipe",
    "ReferenceConfig",
    "RewardConfig",
    "RewardRecipe",
    "RewardTerm",
    "RolloutConfig",
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
