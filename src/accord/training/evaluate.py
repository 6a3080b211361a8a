"""Held-out rows: loss of the policy, accuracy of a reward model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from accord.algorithms import Algorithm, Denominators, Metrics
from accord.algorithms.base import RoleUpdate
from accord.model.forward import forward
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.ops.statistics import one_rank

FAMILIES = ("rewards/", "logps/")
"""Metrics whose first part is not an algorithm's name."""


def evaluate(
    items: Sequence[Any], algorithm: Algorithm, roles: Roles, scorer: Scorer, micro_batch_tokens: int
) -> Metrics:
    """The algorithm's own loss and metrics on all held-out items, without dropout or gradients.

    Each metric `x/name` of the algorithm becomes `eval/name`; those of the field's families keep theirs, as in
    `eval/rewards/margins`. Every rank evaluates all items, so that none has to wait.
    """
    batch, _ = algorithm.prepare(items, scorer)
    denominators = Denominators.of(batch, one_rank).to(roles.device)
    totals: dict[str, float] = {}
    for update in algorithm.roles():
        for name, value in _run(update, batch.split(micro_batch_tokens), algorithm, roles, denominators).items():
            totals[name] = totals.get(name, 0.0) + value
    result = {
        f"eval/{name if name.startswith(FAMILIES) else name.partition('/')[2]}": value for name, value in totals.items()
    }
    return with_perplexity(result, "eval")


def _run(
    update: RoleUpdate, micros: Sequence[Any], algorithm: Algorithm, roles: Roles, denominators: Denominators
) -> dict[str, float]:
    totals: dict[str, float] = {}
    with torch.no_grad(), roles.use(update.role) as role:
        for micro in micros:
            micro = micro.to(roles.device)
            outputs = forward(role, micro, temperature=algorithm.temperature)
            _, metrics = algorithm.loss(update.role, outputs, micro, denominators)
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + float(value)
    return totals


def with_perplexity(metrics: Metrics, prefix: str) -> Metrics:
    """Add exp(loss) where the loss is a mean negative log-likelihood in nats (what has rewards has no perplexity)."""
    loss = metrics.get(f"{prefix}/loss")
    if loss is None or f"{prefix}/margin" in metrics or any("rewards/" in name for name in metrics):
        return metrics
    return metrics | {f"{prefix}/perplexity": math.exp(min(loss, 50.0))}
