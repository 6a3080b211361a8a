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


def evaluate(
    items: Sequence[Any], algorithm: Algorithm, roles: Roles, scorer: Scorer, micro_batch_tokens: int
) -> Metrics:
    """The algorithm's own loss and metrics on all held-out items, without dropout or gradients.

    Each metric `x/name` of the algorithm's own becomes `eval/name`, and `rewards/chosen` and its like `eval/rewards/chosen`.
    Every rank evaluates all items, so that none has to wait.
    """
    batch, _ = algorithm.prepare(items, scorer)
    denominators = Denominators.of(batch, one_rank).to(roles.device)
    totals: dict[str, float] = {}
    for update in algorithm.roles():
        micros = batch.split(micro_batch_tokens, roles.roles[update.role].shares)
        for name, value in _run(update, micros, algorithm, roles, denominators).items():
            totals[name] = totals.get(name, 0.0) + value
    return {_held_out_name(name): value for name, value in with_perplexity(totals).items()}


SHARED = ("rewards", "logps")
"""Prefixes of metrics that several algorithms have; without them two metrics would get one name."""


def _held_out_name(name: str) -> str:
    prefix, _, own = name.partition("/")
    return f"eval/{name}" if prefix in SHARED else f"eval/{own}"


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


def with_perplexity(metrics: Metrics) -> Metrics:
    """Add exp(loss) where there is a mean negative log-likelihood in nats; other losses have no perplexity."""
    loss = metrics.get("sft/loss")
    return metrics if loss is None else metrics | {"sft/perplexity": math.exp(min(loss, 50.0))}
