"""Optimiser and learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from accord.config import TrainConfig


def make_optimizer(weights: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over named weights; heads and norms (one-dimensional weights) are not decayed."""
    kept = {name for name, weight in weights.items() if weight.ndim <= 1 or name.endswith("_head.weight")}
    decayed = [weight for name, weight in weights.items() if name not in kept]
    others = [weight for name, weight in weights.items() if name in kept]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    assert config.learning_rate is not None
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas)


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Learning rate of one step: linear warm-up, then the schedule. A pure function, so a resumed run needs no state.

    Args:
        step: from 0.
        total: steps of the whole run.
        config: peak, warm-up, schedule, and the end as a share of the peak.
    """
    assert config.learning_rate is not None
    warmup = math.ceil(config.warmup * total) if config.warmup < 1 else int(config.warmup)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.learning_rate
    progress = min((step - warmup) / max(total - warmup - 1, 1), 1.0)
    curve = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    floor = config.min_learning_rate
    return config.learning_rate * (floor + (1 - floor) * curve)
