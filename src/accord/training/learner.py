"""One optimiser step: forward, loss, backward, step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from accord.algorithms import Algorithm, Denominators, Metrics, RoleUpdate
from accord.batch import TokenBatch
from accord.config import TrainConfig
from accord.errors import RunError, TrainingError
from accord.model.checkpointing import ActivationCheckpointing
from accord.model.forward import Outputs, Role, Teacher, forward, teach
from accord.model.roles import Roles
from accord.training.balance import RouterBalance
from accord.training.optim import BASE, MakeOptimizer, make_groups, make_optimizer
from accord.training.parallel import Ranks
from accord.training.ptx import PTX
from accord.training.schedule import MakeScheduler, make_schedule

LABELS = ("critic", "head", "lora_b")
"""Groups of weights whose own learning rate is logged."""
Loss: TypeAlias = Callable[[Outputs, TokenBatch, Denominators], tuple[Tensor, dict[str, Tensor]]]


def _added(one: Metrics, other: Metrics) -> Metrics:
    """The metrics of both, added up where they have one name."""
    return one | {name: one.get(name, 0.0) + value for name, value in other.items()}


class Learner:
    """Holds the optimiser of all roles that learn.

    Args:
        roles: the models.
        algorithm: names roles and losses.
        config: learning rate, clipping, micro-batches.
        total_steps: optimiser steps of the whole run, for the schedule.
        ranks: processes that learn together.
        ptx: a language-modelling loss to add to each step of the policy.
        rates: peak learning rates of roles that have one of their own, such as the critic.
        optimizer: makes an optimiser of groups of weights, instead of the recipe's.
        scheduler: makes a scheduler of that optimiser, instead of the recipe's.

    Raises:
        ConfigError: the optimiser or the schedule cannot be made.
        ModelError: activations are to be computed again, and the model's layers cannot be.
    """

    def __init__(
        self,
        roles: Roles,
        algorithm: Algorithm,
        config: TrainConfig,
        total_steps: int,
        ranks: Ranks | None = None,
        ptx: PTX | None = None,
        *,
        rates: Mapping[str, float] | None = None,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        self.roles, self.algorithm, self.config, self.total_steps = roles, algorithm, config, total_steps
        self.ranks = ranks or Ranks()
        self.ptx = ptx
        roles.plan(total_steps)
        self.weights: dict[str, nn.Parameter] = {
            f"{name}.{key}": weight for name in roles.roles for key, weight in roles.trainable(name).items()
        }
        self.optimizer = make_optimizer(make_groups(self.weights, config, rates or {}), config, optimizer)
        self.schedule = make_schedule(self.optimizer, config, total_steps, scheduler)
        self.balance = RouterBalance(roles, self.ranks)
        learning = {name: role for name, role in roles.roles.items() if role.trains and config.activation_checkpointing}
        self.checkpointing = {name: ActivationCheckpointing(role.trunk) for name, role in learning.items()}
        self.steps = 0

    def update(self, batch: TokenBatch) -> Metrics:
        """One step on one batch (this rank's part of it); the result does not depend on how it is cut into micro-batches.

        Raises:
            TrainingError: the loss or a gradient is not finite; the weights are as before the step.
        """
        self.roles.train_mode(self.algorithm.uses_dropout)
        denominators = Denominators.of(batch, self.ranks.sum).to(self.roles.device)
        metrics: Metrics = {}
        tokens, computed = batch.tokens, 0
        for number, update in enumerate(self.algorithm.roles()):
            loss = partial(self.algorithm.loss, update.role)
            sums, through = self._backward(update, batch, denominators, loss, self.algorithm.temperature)
            if self.ptx is not None and update.role == self.ptx.role and not update.heads_only:
                text = self.ptx.batch(self.steps)
                counts = Denominators.of(text, self.ranks.sum).to(self.roles.device)
                more, beside = self._backward(
                    RoleUpdate(update.role), text, counts, self.ptx.loss, self.ptx.temperature
                )
                sums, through = _added(sums, more), through + beside
                tokens += text.tokens
            computed = computed or through  # of the first role, as `tokens` counts each once for all roles
            metrics = _added(_added(metrics, sums), self._backward_penalty(update))
            metrics |= self._reduce_and_clip(update, beside=number > 0 or update.role == "critic")
        self.roles.train_mode(False)
        self._check_finite(metrics)
        metrics["tokens/trained"] = float(denominators.tokens - denominators.idle_tokens)
        reason = self.algorithm.veto(metrics)
        if reason is None:
            self.schedule.go_to(self.steps)
            metrics |= self._rates()
            self.optimizer.step()
        metrics |= self.roles.adapters.after_step(self.steps + 1)
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        metrics["ppo/steps_skipped" if reason else "optim/steps_taken"] = 1.0
        self.schedule.watch(metrics)
        seen, through = self.ranks.sum(torch.tensor([tokens, computed], dtype=torch.float64)).tolist()
        return metrics | {"tokens/seen": seen, "tokens/computed": through}

    def _backward(
        self, update: RoleUpdate, batch: TokenBatch, denominators: Denominators, loss_of: Loss, temperature: float
    ) -> tuple[Metrics, int]:
        """Gradients of one role over all micro-batches. Returns metrics added up over micro-batches and ranks, and how many
        tokens the role computed on this rank."""
        totals: dict[str, Tensor] = {}
        saving = self.checkpointing.get(update.role)
        with (
            self.roles.use(update.role, train=True) as role,
            self._own_teacher(update) as own,
            nullcontext() if saving is None else saving.on(),
        ):
            micros = batch.split(self.config.micro_batch_tokens, role.shares)
            computed = sum(micro.computed(role.shares) for micro in micros)
            balance = self.balance.step(role, micros, update.heads_only)
            for micro in micros:
                micro = micro.to(self.roles.device)
                teacher = self._taught(update, own, micro)
                with balance.watching(micro):
                    outputs = forward(
                        role,
                        micro,
                        temperature=temperature,
                        entropy=update.entropy,
                        detach_trunk=update.heads_only,
                        teacher=teacher,
                    )
                loss, metrics = loss_of(outputs, micro, denominators)
                loss, metrics = balance.added(loss, metrics)
                loss.backward()
                # The nodes of the graph lie between its tensors: alive while the next one is built, they would keep the heap
                # from using that memory again.
                del outputs, loss
                for name, value in metrics.items():
                    old = totals.get(name)
                    if old is None:
                        totals[name] = value
                    else:
                        totals[name] = torch.maximum(old, value) if name.endswith("_max") else old + value
        reduced = {
            name: float(self.ranks.max(value) if name.endswith("_max") else self.ranks.sum(value))
            for name, value in totals.items()
        }
        return reduced, computed

    def _own_teacher(self, update: RoleUpdate) -> AbstractContextManager[Role | None]:
        """A teacher with weights of its own is there for a whole step: the student's loss reads its output layer."""
        if update.teacher is None or self.roles.roles[update.teacher].shared:
            return nullcontext()
        return self.roles.use(update.teacher)

    def _taught(self, update: RoleUpdate, own: Role | None, micro: TokenBatch) -> Teacher | None:
        """What the role's teacher says about a micro-batch, if it has one."""
        if update.teacher is None:
            return None
        if own is not None:
            return teach(own, micro, update.beta)
        with self.roles.use(update.teacher) as other:
            return teach(other, micro, update.beta)

    def _backward_penalty(self, update: RoleUpdate) -> Metrics:
        """Gradient of the adapter's own penalty: once a step, whatever the split into micro-batches and ranks, with text beside
        the rewards or without."""
        if update.heads_only:
            return {}
        with self.roles.use(update.role, train=True) as role:
            shares = self.roles.adapters.backward_penalty(role.adapter, self.ranks.size)
        return {name: float(self.ranks.sum(share)) for name, share in shares.items()}

    def _reduce_and_clip(self, update: RoleUpdate, beside: bool) -> Metrics:
        """Add gradients over ranks, and limit their norm, for each role by itself: a wild critic must not slow the policy."""
        prefix = f"{update.role}."
        weights = [weight for name, weight in self.weights.items() if name.startswith(prefix)]
        self.ranks.sum_gradients(weights)
        limit = self.config.max_grad_norm if self.config.max_grad_norm is not None else torch.inf
        norm = nn.utils.clip_grad_norm_(weights, limit)
        return {f"optim/grad_norm_{update.role}" if beside else "optim/grad_norm": float(norm)}

    def _rates(self) -> Metrics:
        """The step's learning rates: the recipe's, and those of what learns at another."""
        rates = self.schedule.rates()
        base = rates.pop(BASE, None) if len(rates) > 1 else rates.pop(next(iter(rates)))
        own = {} if base is None else {"optim/learning_rate": base}
        return own | {f"optim/learning_rate_{label}": rate for label, rate in rates.items() if label in LABELS}

    def _check_finite(self, metrics: Metrics) -> None:
        bad = [name for name, value in metrics.items() if not torch.isfinite(torch.tensor(value))]
        if bad:
            self.optimizer.zero_grad(set_to_none=True)
            advice = "Lower train.learning_rate, or look for"
            if self.steps == 0:
                advice = "It is the first, so look for NaN in the model's weights, a model.dtype that overflows, or"
            raise TrainingError(
                f"step {self.steps + 1}: {', '.join(bad)} not finite, so the step was not taken. {advice} scores of extreme size "
                "(algorithm.reward_clip bounds them)"
            )

    # --- state -------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Weights and the optimiser's tensors, by name; no two share memory."""
        result = {f"weight/{name}": weight.detach() for name, weight in self.weights.items()}
        seen: set[int] = set()
        for name, weight in self.weights.items():
            for key, value in self.optimizer.state.get(weight, {}).items():
                if isinstance(value, Tensor):
                    place = value.untyped_storage().data_ptr()
                    # bitsandbytes keeps one quantisation map for all weights, and safetensors takes no tensor twice.
                    result[f"optimizer/{key}/{name}"] = value.clone() if place in seen else value
                    seen.add(place)
        return result | {f"adapters/{key}": value for key, value in self.roles.adapters.tensors().items()}

    def state_dict(self) -> dict[str, Any]:
        """The rest of what a checkpoint needs, as plain JSON data: counts of the optimiser, state of the schedule.

        Raises:
            TrainingError: the optimiser or scheduler keeps something that JSON cannot hold.
        """
        counts: dict[str, dict[str, Any]] = {}
        for name, weight in self.weights.items():
            own = self.optimizer.state.get(weight, {})
            rest = {key: value for key, value in own.items() if not isinstance(value, Tensor)}
            if rest:
                counts[name] = rest
        state = {"kinds": self._kinds(), "optimizer": counts, "schedule": self.schedule.state_dict()}
        try:
            json.dumps(state)
        except TypeError as error:
            kinds = " or ".join(self._kinds())
            raise TrainingError(f"{kinds} keeps state that cannot be saved in a checkpoint: {error}") from error
        return state

    def _kinds(self) -> list[str]:
        return [type(self.optimizer).__name__, type(self.schedule.scheduler).__name__]

    def load_tensors(self, tensors: Mapping[str, Tensor], steps: int, rest: Mapping[str, Any] | None = None) -> None:
        """Take over what `tensors` and `state_dict` gave, after `steps` steps.

        Raises:
            KeyError: a weight is missing; the checkpoint is of another recipe.
            RunError: the optimiser or scheduler (given as an object) is of another kind.
        """
        rest = rest or {}
        if rest.get("kinds", self._kinds()) != self._kinds():
            raise RunError(
                f"the checkpoint was written with {' and '.join(rest['kinds'])}, and the optimiser and scheduler are now "
                f"{' and '.join(self._kinds())}"
            )
        state: dict[nn.Parameter, dict[str, Any]] = {}
        by_name, adapters = {}, {}
        for name, weight in self.weights.items():
            weight.data.copy_(tensors[f"weight/{name}"])
            by_name[name] = weight
        for key, value in tensors.items():
            kind, _, after = key.partition("/")
            if kind == "adapters":
                adapters[after] = value
            if kind == "optimizer":
                entry, _, name = after.partition("/")
                weight = by_name[name]
                moved = value.clone() if entry == "step" else value.to(weight.device, copy=True)
                state.setdefault(weight, {})[entry] = moved
        for name, counts in rest.get("optimizer", {}).items():
            state.setdefault(by_name[name], {}).update(counts)
        self.roles.adapters.load_tensors(adapters)
        self.optimizer.state.clear()
        for weight, entries in state.items():
            self.optimizer.state[weight] = entries
        self.schedule.restore(rest.get("schedule", {}), steps)
        self.steps = steps
