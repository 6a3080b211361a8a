"""One optimiser step: forward, loss, backward, step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from accord.algorithms import Algorithm, Denominators, Metrics, RoleUpdate
from accord.batch import TokenBatch
from accord.config import TrainConfig
from accord.errors import TrainingError
from accord.model.forward import forward
from accord.model.roles import Roles
from accord.training.optim import learning_rate, make_optimizer
from accord.training.parallel import Ranks


class Learner:
    """Holds the optimiser of all roles that learn.

    Args:
        roles: the models.
        algorithm: names roles and losses.
        config: learning rate, clipping, micro-batches.
        total_steps: optimiser steps of the whole run, for the schedule.
        ranks: processes that learn together.
    """

    def __init__(
        self, roles: Roles, algorithm: Algorithm, config: TrainConfig, total_steps: int, ranks: Ranks | None = None
    ) -> None:
        self.roles, self.algorithm, self.config, self.total_steps = roles, algorithm, config, total_steps
        self.ranks = ranks or Ranks()
        roles.plan(total_steps)
        self.weights: dict[str, nn.Parameter] = {
            f"{name}.{key}": weight for name in roles.roles for key, weight in roles.trainable(name).items()
        }
        self.optimizer = make_optimizer(self.weights, config)
        self.steps = 0

    def update(self, batch: TokenBatch) -> Metrics:
        """One step on one batch (this rank's part of it); the result does not depend on how it is cut into micro-batches.

        Raises:
            TrainingError: the loss or a gradient is not finite; the weights are as before the step.
        """
        self.roles.train_mode(self.algorithm.uses_dropout)
        denominators = Denominators.of(batch, self.ranks.sum).to(self.roles.device)
        metrics: Metrics = {}
        for number, update in enumerate(self.algorithm.roles()):
            sums = self._backward(update, batch, denominators)
            metrics |= {name: sums.get(name, 0.0) + metrics.get(name, 0.0) for name in sums}
            metrics |= self._reduce_and_clip(update, first=number == 0)
        self.roles.train_mode(False)
        self._check_finite(metrics)
        reason = self.algorithm.veto(metrics)
        if reason is None:
            rate = learning_rate(self.steps, self.total_steps, self.config)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            metrics["optim/learning_rate"] = rate
        metrics |= self.roles.adapters.after_step(self.steps + 1)
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        metrics["ppo/steps_skipped" if reason else "optim/steps_taken"] = 1.0
        seen = self.ranks.sum(torch.tensor(float(batch.tokens)))
        return metrics | {"tokens/trained": float(denominators.tokens), "tokens/seen": float(seen)}

    def _backward(self, update: RoleUpdate, batch: TokenBatch, denominators: Denominators) -> Metrics:
        """Gradients of one role over all micro-batches; metrics added up over micro-batches and ranks."""
        totals: dict[str, Tensor] = {}
        with self.roles.use(update.role, train=True) as role:
            for micro in batch.split(self.config.micro_batch_tokens):
                micro = micro.to(self.roles.device)
                outputs = forward(
                    role,
                    micro,
                    temperature=self.algorithm.temperature,
                    entropy=update.entropy,
                    detach_trunk=update.heads_only,
                )
                loss, metrics = self.algorithm.loss(update.role, outputs, micro, denominators)
                loss.backward()
                for name, value in metrics.items():
                    old = totals.get(name)
                    if old is None:
                        totals[name] = value
                    else:
                        totals[name] = torch.maximum(old, value) if name.endswith("_max") else old + value
            if not update.heads_only:  # once a step, whatever the split into micro-batches and ranks
                totals |= self.roles.adapters.backward_penalty(role.adapter, self.ranks.size)
        return {
            name: float(self.ranks.max(value) if name.endswith("_max") else self.ranks.sum(value))
            for name, value in totals.items()
        }

    def _reduce_and_clip(self, update: RoleUpdate, first: bool) -> Metrics:
        """Add gradients over ranks, and limit their norm, for each role by itself: a wild critic must not slow the policy."""
        prefix = f"{update.role}."
        weights = [weight for name, weight in self.weights.items() if name.startswith(prefix)]
        self.ranks.sum_gradients(weights)
        limit = self.config.max_grad_norm if self.config.max_grad_norm is not None else torch.inf
        norm = nn.utils.clip_grad_norm_(weights, limit)
        return {"optim/grad_norm" if first else f"optim/grad_norm_{update.role}": float(norm)}

    def _check_finite(self, metrics: Metrics) -> None:
        bad = [name for name, value in metrics.items() if not torch.isfinite(torch.tensor(value))]
        if bad:
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingError(
                f"step {self.steps + 1}: {', '.join(bad)} not finite, so the step was not taken. Lower train.learning_rate, "
                "or look for scores of extreme size (algorithm.reward_clip bounds them); then go on with --resume"
            )

    # --- state -------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimiser state, by name."""
        result = {f"weight/{name}": weight.detach() for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            for key, value in self.optimizer.state.get(weight, {}).items():
                result[f"optimizer/{key}/{name}"] = value
        return result | {f"adapters/{key}": value for key, value in self.roles.adapters.tensors().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Take over what `tensors` gave.

        Raises:
            KeyError: a weight is missing; the checkpoint is of another recipe.
        """
        state: dict[nn.Parameter, dict[str, Any]] = {}
        by_name, adapters = {}, {}
        for name, weight in self.weights.items():
            weight.data.copy_(tensors[f"weight/{name}"])
            by_name[name] = weight
        for key, value in tensors.items():
            kind, _, rest = key.partition("/")
            if kind == "adapters":
                adapters[rest] = value
            if kind == "optimizer":
                entry, _, name = rest.partition("/")
                weight = by_name[name]
                moved = value.clone() if entry == "step" else value.to(weight.device, copy=True)
                state.setdefault(weight, {})[entry] = moved
        self.roles.adapters.load_tensors(adapters)
        self.optimizer.state.clear()
        for weight, entries in state.items():
            self.optimizer.state[weight] = entries
        self.steps = steps
