"""How long and how fast a run learns, and what it writes down."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from accord.config.base import Section
from accord.config.optim import OptimizerConfig, ScheduleConfig


class TrainConfig(Section):
    """What work with examples and work with rollouts share."""

    batch_size: int = Field(32, ge=1)
    """Sequences (pairs, for pairs) of one optimiser step; for rollouts: responses of one iteration. Over all ranks."""
    micro_batch_tokens: int = Field(4096, ge=1)
    """Tokens that go through the model at once. Changes memory and speed, never the result."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer for the backward pass and compute the rest again: less memory, a third more time, the
    same gradients (Chen et al. 2016, arXiv:1604.06174)."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate; the default depends on the recipe and on whether an adapter learns, and is printed."""
    head_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of value and score heads, which start at 0 while the rest is trained already; `null`: that of the
    role they belong to."""
    lora_plus_ratio: float | None = Field(None, gt=0)
    """How many times faster LoRA's B learns than its A (LoRA+, Hayou et al. 2024, arXiv:2402.12354: 16); `null`: equally."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """What takes the steps: a name, or `{name: ..., keyword: value}`."""
    warmup: float = Field(0.03, ge=0)
    """Linear warm-up: a share of all steps if below 1, else a number of steps."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Course of the learning rate: a name, or `{name: ..., keyword: value}`."""
    min_learning_rate: float = Field(0.1, ge=0, le=1)
    """Where the schedule ends, as a share of the peak (OpenRLHF's cosine ends at 0.1)."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay, of matrices alone: not of heads, norms and biases."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients are scaled down to this norm; `null` turns it off."""
    checkpoint_every: int = Field(50, ge=0)
    """Iterations between checkpoints; 0 = only at the end."""
    keep: int = Field(2, ge=1)
    """Checkpoints kept."""
    eval_every: int = Field(0, ge=0)
    """Iterations between evaluations of held-out rows; 0 = only at the end."""
    sinks: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides `metrics.jsonl`."""
    log_every: int = Field(1, ge=1)
    """Iterations between lines of the console table."""

    @model_validator(mode="after")
    def _schedule_ends_somewhere(self) -> Self:
        if self.schedule.target == "constant":
            self.refuse_idle(("min_learning_rate",), "schedule: constant stays at the peak")
        return self


class ExampleTrain(TrainConfig):
    """Work with examples counts steps or epochs."""

    steps: int | None = Field(None, ge=1)
    """Optimiser steps; overrides `epochs`."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the rows."""


class RolloutTrain(TrainConfig):
    """Work with rollouts counts iterations: collect, then several optimiser steps."""

    iterations: int = Field(100, ge=1)
    """Batches of rollouts to collect and learn from."""
    batch_size: int = Field(64, ge=1)
    """Responses of one iteration, over all ranks."""
    checkpoint_every: int = Field(10, ge=0)
    """Iterations between checkpoints; 0 = only at the end."""
    rollouts_every: int = Field(1, ge=0)
    """Iterations between files of rollouts in `rollouts/`; 0 = none."""

    @model_validator(mode="after")
    def _no_evaluation(self) -> Self:
        if self.eval_every:
            raise ValueError(
                "eval_every is for recipes with held-out rows; a rollout recipe logs its scores each iteration"
            )
        return self


class PlacementConfig(Section):
    """Which process and device holds which role."""

    type: Literal["local", "torchrun"] = "local"
    """`local`: all roles in this process. `torchrun`: in each process that torchrun starts, which share each batch."""
    device: str = "auto"
    """`auto` (an accelerator when there is one), or a torch device such as `cpu` or `cuda:0`."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; by default the physical cores that this process may use, shared among the ranks of this machine, or what
    OMP_NUM_THREADS says."""
    allocator: Literal["fast", "lean"] = "fast"
    """Memory on CPU. `fast`: glibc's way, which keeps what tensors leave and cannot use all of it again. `lean`: tensors go back
    to the system at once; up to half the memory, for half as much time again. See docs/forecast.md."""
