"""One file an algorithm: its own options, and its recipe."""

from accord.config.recipe import Recipe
from accord.config.recipes.bco import BCOConfig, BCORecipe
from accord.config.recipes.classify import ClassifyConfig, ClassifyRecipe
from accord.config.recipes.cpo import CPOConfig, CPORecipe
from accord.config.recipes.csft import CSFTConfig, CSFTRecipe
from accord.config.recipes.distill import DistillConfig, DistillRecipe
from accord.config.recipes.dpo import DPOConfig, DPORecipe
from accord.config.recipes.grpo import GRPOConfig, GRPORecipe
from accord.config.recipes.kto import KTOConfig, KTORecipe
from accord.config.recipes.online_dpo import OnlineDPOConfig, OnlineDPORecipe
from accord.config.recipes.orpo import ORPOConfig, ORPORecipe
from accord.config.recipes.ppo import PPOConfig, PPORecipe
from accord.config.recipes.reinforce import ReinforceConfig, ReinforceRecipe
from accord.config.recipes.rejection import RejectionConfig, RejectionRecipe
from accord.config.recipes.remax import ReMaxConfig, ReMaxRecipe
from accord.config.recipes.reward import RewardConfig, RewardRecipe
from accord.config.recipes.rloo import RLOOConfig, RLOORecipe
from accord.config.recipes.sft import SFTConfig, SFTRecipe
from accord.config.recipes.simpo import SimPOConfig, SimPORecipe

RECIPES: dict[str, type[Recipe]] = {
    "sft": SFTRecipe,
    "reward": RewardRecipe,
    "classify": ClassifyRecipe,
    "ppo": PPORecipe,
    "rloo": RLOORecipe,
    "grpo": GRPORecipe,
    "reinforce": ReinforceRecipe,
    "dpo": DPORecipe,
    "orpo": ORPORecipe,
    "simpo": SimPORecipe,
    "cpo": CPORecipe,
    "kto": KTORecipe,
    "bco": BCORecipe,
    "online_dpo": OnlineDPORecipe,
    "csft": CSFTRecipe,
    "distill": DistillRecipe,
    "rejection": RejectionRecipe,
    "remax": ReMaxRecipe,
}
"""Training command -> its recipe. The CLI, the algorithms and the docs have the same keys."""

__all__ = [
    "RECIPES",
    "BCOConfig",
    "BCORecipe",
    "CPOConfig",
    "CPORecipe",
    "CSFTConfig",
    "CSFTRecipe",
    "ClassifyConfig",
    "ClassifyRecipe",
    "DPOConfig",
    "DPORecipe",
    "DistillConfig",
    "DistillRecipe",
    "GRPOConfig",
    "GRPORecipe",
    "KTOConfig",
    "KTORecipe",
    "ORPOConfig",
    "ORPORecipe",
    "OnlineDPOConfig",
    "OnlineDPORecipe",
    "PPOConfig",
    "PPORecipe",
    "RLOOConfig",
    "RLOORecipe",
    "ReMaxConfig",
    "ReMaxRecipe",
    "ReinforceConfig",
    "ReinforceRecipe",
    "RejectionConfig",
    "RejectionRecipe",
    "RewardConfig",
    "RewardRecipe",
    "SFTConfig",
    "SFTRecipe",
    "SimPOConfig",
    "SimPORecipe",
]
