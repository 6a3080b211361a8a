"""Accord teaches language models from human feedback.

    import accord

    run = accord.train("ppo.yaml")                     # a whole recipe
    session = accord.PPO({"model": {"path": "..."}})   # or one's own loop: generate, step, save

Importing `accord` imports no torch; that happens when something is used that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from accord.errors import (
    AccordError,
    AccordWarning,
    ConfigError,
    DataError,
    GenerationError,
    ModelError,
    RewardError,
    RunError,
    TrainingError,
)
from accord.types import (
    Example,
    LabelledResponse,
    LabelledText,
    LabelledTokens,
    Message,
    PreferencePair,
    Prompt,
    Rollout,
    StepwiseExample,
)

if TYPE_CHECKING:
    from accord.config import (
        BCORecipe,
        ClassifyRecipe,
        CPORecipe,
        CSFTRecipe,
        DistillRecipe,
        DPORecipe,
        GRPORecipe,
        KTORecipe,
        OnlineDPORecipe,
        ORPORecipe,
        PPORecipe,
        ReinforceRecipe,
        RejectionRecipe,
        ReMaxRecipe,
        RewardRecipe,
        RLOORecipe,
        SFTRecipe,
        SimPORecipe,
    )
    from accord.model.merging import merge
    from accord.recipes import train
    from accord.recipes.generate import generate
    from accord.recipes.session import PPO
    from accord.training.run import Run

_LAZY = {
    "BCORecipe": "accord.config",
    "CPORecipe": "accord.config",
    "CSFTRecipe": "accord.config",
    "ClassifyRecipe": "accord.config",
    "DPORecipe": "accord.config",
    "DistillRecipe": "accord.config",
    "GRPORecipe": "accord.config",
    "KTORecipe": "accord.config",
    "ORPORecipe": "accord.config",
    "OnlineDPORecipe": "accord.config",
    "PPO": "accord.recipes.session",
    "PPORecipe": "accord.config",
    "RLOORecipe": "accord.config",
    "ReMaxRecipe": "accord.config",
    "ReinforceRecipe": "accord.config",
    "RejectionRecipe": "accord.config",
    "RewardRecipe": "accord.config",
    "Run": "accord.training.run",
    "SFTRecipe": "accord.config",
    "SimPORecipe": "accord.config",
    "generate": "accord.recipes.generate",
    "merge": "accord.model.merging",
    "train": "accord.recipes",
}

__all__ = [
    "PPO",
    "AccordError",
    "AccordWarning",
    "BCORecipe",
    "CPORecipe",
    "CSFTRecipe",
    "ClassifyRecipe",
    "ConfigError",
    "DPORecipe",
    "DataError",
    "DistillRecipe",
    "Example",
    "GRPORecipe",
    "GenerationError",
    "KTORecipe",
    "LabelledResponse",
    "LabelledText",
    "LabelledTokens",
    "Message",
    "ModelError",
    "ORPORecipe",
    "OnlineDPORecipe",
    "PPORecipe",
    "PreferencePair",
    "Prompt",
    "RLOORecipe",
    "ReMaxRecipe",
    "ReinforceRecipe",
    "RejectionRecipe",
    "RewardError",
    "RewardRecipe",
    "Rollout",
    "Run",
    "RunError",
    "SFTRecipe",
    "SimPORecipe",
    "StepwiseExample",
    "TrainingError",
    "generate",
    "merge",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'accord' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
