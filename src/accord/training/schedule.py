"""Course of the learning rate: a torch scheduler, ours or anybody's, that is played again on resume."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from accord.config import TrainConfig
from accord.config.optim import OWN_SCHEDULES
from accord.errors import ConfigError
from accord.training.optim import check_keywords, find_class

MakeScheduler: TypeAlias = Callable[[Optimizer], Any]
"""Anything that makes a torch scheduler of an optimiser, such as `partial(torch.optim.lr_scheduler.StepLR, step_size=10)`."""
MOVED = ("params", "lr", "initial_lr")
"""Entries of a group that are not its own state: they follow from the recipe and the step."""


def course(step: int, total: int, config: TrainConfig) -> float:
    """Learning rate of a step as a share of the peak: linear warm-up, then `cosine`, `linear` or `constant`.

    Args:
        step: from 0.
        total: steps of the whole run.
        config: warm-up, schedule, and the end as a share of the peak.
    """
    warmup = warmup_steps(total, config)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule.target == "constant":
        return 1.0
    progress = min((step - warmup) / max(total - warmup - 1, 1), 1.0)
    curve = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule.target == "cosine" else 1 - progress
    return config.min_learning_rate + (1 - config.min_learning_rate) * curve


def warmup_steps(total: int, config: TrainConfig) -> int:
    """The recipe's warm-up as a number of steps."""
    return math.ceil(config.warmup * total) if config.warmup < 1 else int(config.warmup)


class Schedule:
    """Sets the learning rates of all groups for the step to come.

    A scheduler that counts steps keeps nothing that a checkpoint needs: it is made anew and stepped to where it was, with
    the recipe's rate and length of today, so that a run can be given a new length. One that watches a metric is saved.

    Args:
        optimizer: with the peak rates in its groups.
        make: makes the scheduler, once now and once at each `restore`.
        metric: what it watches, if it does.

    Raises:
        ConfigError: the scheduler cannot be made.
    """

    def __init__(self, optimizer: Optimizer, make: MakeScheduler, metric: str | None = None) -> None:
        self.optimizer, self._make, self.metric = optimizer, make, metric
        self._start = [
            {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
        ]
        self.scheduler = self._new()
        self.at = 0
        """The step that the groups' rates are for."""
        self._made = [dict(group) for group in optimizer.param_groups]
        watches = "metrics" in inspect.signature(type(self.scheduler).step).parameters
        if watches != (metric is not None):
            rule = (
                "watches a number, so it needs `metric`" if watches else "depends on the step alone: leave `metric` out"
            )
            raise ConfigError(f"schedule {type(self.scheduler).__name__} {rule}")

    def _new(self) -> Any:
        try:
            return self._make(self.optimizer)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"train.schedule: {error}") from error

    def rates(self) -> dict[str, float]:
        """The rates of the step to come, by label of the groups."""
        return {group.get("label", "base"): float(group["lr"]) for group in reversed(self.optimizer.param_groups)}

    def go_to(self, step: int) -> None:
        """Set the rates of a step; steps that were left out are gone over.

        Args:
            step: from 0, not before the one it is at.

        Raises:
            ConfigError: the course has come to its end, or cannot be computed.
        """
        while self.at < step:
            self.at += 1
            if self.metric is None:
                self._step()

    def _step(self) -> None:
        with warnings.catch_warnings():  # of steps that were skipped, or were taken before a checkpoint
            warnings.filterwarnings("ignore", r"(?s).*lr_scheduler\.step", UserWarning)
            try:
                self.scheduler.step()
            except (TypeError, ValueError) as error:
                raise ConfigError(f"train.schedule, at step {self.at}: {error}") from error

    def watch(self, metrics: Mapping[str, float]) -> None:
        """Show what a step logged to a scheduler that watches a number.

        Raises:
            ConfigError: it is none of a step's numbers.
        """
        if self.metric is None:
            return
        if self.metric in metrics:
            self.scheduler.step(metrics[self.metric])
        elif "optim/steps_taken" in metrics:
            raise ConfigError(
                f"train.schedule.metric: no step logs {self.metric!r}; they log {', '.join(sorted(metrics))}"
            )

    def state_dict(self) -> dict[str, Any]:
        """What cannot be played again: entries that the optimiser keeps in its groups, and the state of a scheduler that
        watches a metric."""
        groups = [
            {key: value for key, value in group.items() if key not in MOVED and made.get(key, MOVED) is not value}
            for group, made in zip(self.optimizer.param_groups, self._made, strict=True)
        ]
        state: dict[str, Any] = {"groups": groups}
        if self.metric is not None:
            rates = [group["lr"] for group in self.optimizer.param_groups]
            state |= {"scheduler": self.scheduler.state_dict(), "rates": rates, "peaks": [g["lr"] for g in self._start]}
        return state

    def restore(self, state: Mapping[str, Any], steps: int) -> None:
        """Be where the run was after `steps` steps.

        Args:
            state: what `state_dict` gave; may be empty.
            steps: optimiser steps, skipped ones included.
        """
        kept = state.get("groups") or [{}] * len(self._start)
        for group, start, own in zip(self.optimizer.param_groups, self._start, kept, strict=True):
            group.pop("initial_lr", None)
            group.update(start)
            group.update({key: _like(start.get(key), value) for key, value in own.items()})
        self.scheduler = self._new()
        self.at = 0
        self.go_to(steps)
        if "scheduler" in state:
            self.scheduler.load_state_dict(dict(state["scheduler"]))
            peaks = [start["lr"] for start in self._start]
            for group, rate, old, new in zip(
                self.optimizer.param_groups, state["rates"], state["peaks"], peaks, strict=True
            ):
                group["lr"] = rate if new == old else rate * new / old


def _like(old: Any, value: Any) -> Any:
    """JSON has no tuples."""
    return tuple(value) if isinstance(old, tuple) else value


def make_schedule(optimizer: Optimizer, config: TrainConfig, total: int, make: MakeScheduler | None = None) -> Schedule:
    """The schedule of a run: what `make` gives, or the recipe's.

    Args:
        optimizer: with the peak rates in its groups.
        config: the recipe's.
        total: optimiser steps of the whole run.
        make: given an optimiser, a scheduler that is stepped once after each step and counts them.

    Raises:
        ConfigError: there is no such schedule, or it does not take these keywords.
    """
    if make is not None:
        return Schedule(optimizer, make)
    chosen = config.schedule
    if chosen.target in OWN_SCHEDULES:
        return Schedule(optimizer, partial(_ours, total=total, config=config))
    function = find_schedule(config)
    return Schedule(optimizer, partial(function, **_known(function, optimizer, config, total)), chosen.metric)


def _ours(optimizer: Optimizer, total: int, config: TrainConfig) -> LambdaLR:
    return LambdaLR(optimizer, partial(course, total=total, config=config))


def find_schedule(config: TrainConfig) -> Callable[..., Any]:
    """The class or function of a schedule that is not ours. Needs no weights.

    Raises:
        ConfigError: there is none, or it has no such keyword.
    """
    chosen, where = config.schedule, f"train.schedule {config.schedule.name}"
    source, _, name = chosen.target.rpartition(":")
    if source:
        from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR, SchedulerType

        # The function of `greedy` hands all keywords on to the class, and so cannot say which it has.
        function: Any = GreedyLR if name == "greedy" else TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    else:
        function = find_class(chosen.target, where)
    check_keywords(function, chosen.keywords, where)
    found: Callable[..., Any] = function
    return found


def _known(function: Callable[..., Any], optimizer: Optimizer, config: TrainConfig, total: int) -> dict[str, Any]:
    """A schedule's keywords: the recipe's own, and those that the run has an answer to."""
    given, has = config.schedule.keywords, inspect.signature(function).parameters
    peaks, floor = [group["lr"] for group in optimizer.param_groups], config.min_learning_rate
    answers: dict[str, Any] = {
        "num_warmup_steps": warmup_steps(total, config),
        "num_training_steps": total,
        "total_steps": total,
        "T_max": total,
        "max_lr": peaks,
        "lr_end": floor * (config.learning_rate or 0.0),
        "min_lr_ratio": floor,
        "min_lr_rate": floor,
        "min_lr": [floor * peak for peak in peaks],
    }
    for key, same in (("min_lr", "min_lr_rate"), ("total_steps", "epochs"), ("num_training_steps", "num_stable_steps")):
        if same in given or (key == "min_lr" and same in has):
            del answers[key]
    if "min_lr" in given:
        del answers["min_lr_rate"]
    return {key: value for key, value in answers.items() if key in has} | given
