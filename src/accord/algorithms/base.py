"""What an algorithm is. A protocol and not a base class: algorithms share functions, not ancestors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from accord.batch import TokenBatch
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.statistics import SumOverRanks

Metrics = dict[str, float]


@dataclass(frozen=True)
class Denominators:
    """Counts over a whole optimiser step, all micro-batches and all ranks: what losses are divided by."""

    tokens: Tensor
    """Target tokens, float32 scalar."""
    sequences: Tensor
    """Sequences, float32 scalar."""
    desirable: Tensor = field(default_factory=lambda: torch.tensor(0.0))
    """Sequences with a thumb up, float32 scalar; 0 without labels."""
    idle_tokens: Tensor = field(default_factory=lambda: torch.tensor(0.0))
    """Of the target tokens, those that nothing is learnt from (`TokenBatch.learnt_N`), float32 scalar."""
    idle_sequences: Tensor = field(default_factory=lambda: torch.tensor(0.0))
    """Of the sequences, those that nothing is learnt from, float32 scalar."""

    @classmethod
    def of(cls, batch: TokenBatch, sum_over_ranks: SumOverRanks) -> Denominators:
        """Count this rank's part of a step and add the other ranks'."""
        desirable = 0 if batch.labels_N is None else int(batch.labels_N.sum())
        idle_N = torch.zeros(batch.sequences, dtype=torch.bool) if batch.learnt_N is None else ~batch.learnt_N
        idle = int((batch.target_mask_T & idle_N[batch.sequence_T]).sum()), int(idle_N.sum())
        counts = torch.tensor([batch.targets, batch.sequences, desirable, *idle], dtype=torch.float64)
        return cls(*sum_over_ranks(counts).float().unbind())

    @property
    def learnt(self) -> Denominators:
        """Counts of what is learnt from alone; 1 where that is nothing, so that its sum, 0, can be divided."""
        tokens, sequences = self.tokens - self.idle_tokens, self.sequences - self.idle_sequences
        return Denominators(tokens.clamp(min=1), sequences.clamp(min=1), self.desirable)

    def to(self, device: torch.device) -> Denominators:
        """A copy on a device."""
        return Denominators(*(getattr(self, count.name).to(device) for count in fields(self)))


class Algorithm(Protocol):
    """Turns examples or scored rollouts into token batches, and names its loss."""

    uses_dropout: bool
    """Whether dropout is on in updates. Off for algorithms that compare with the policy's own log-probs of before."""
    temperature: float
    """Log-probabilities are those of logits / temperature."""

    def prepare(self, items: Sequence[Any], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """One iteration's batch, with every stream that the loss reads, and metrics of the collection."""
        ...

    def minibatches(self, batch: TokenBatch, generator: torch.Generator) -> Iterator[TokenBatch]:
        """The optimiser steps of an iteration, one batch each."""
        ...

    def roles(self) -> tuple[RoleUpdate, ...]:
        """The roles that learn in this iteration, in order, and how they are run."""
        ...

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and additive metrics of one role on one micro-batch."""
        ...

    def veto(self, metrics: Metrics) -> str | None:
        """A reason not to take the step that these metrics describe, or `None`."""
        ...

    def enough(self, metrics: Metrics) -> bool:
        """Whether the iteration ends after the step that these metrics describe; they are the same on all ranks."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, as plain JSON data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint's state."""
        ...


@dataclass(frozen=True)
class RoleUpdate:
    """How a role is run in an update."""

    role: str
    entropy: bool = False
    """Whether its loss reads entropies."""
    heads_only: bool = False
    """Whether gradients stop at the hidden states."""
    teacher: str | None = None
    """Role whose distributions its own are compared with; its loss then reads divergences instead of log-probabilities."""
    beta: float = 0.5
    """Of that divergence."""


class TakesEveryStep:
    """Of algorithms that veto nothing and stop nowhere."""

    def veto(self, metrics: Metrics) -> str | None:
        """Every step is taken."""
        return None

    def enough(self, metrics: Metrics) -> bool:
        """Every step of an iteration is taken."""
        return False


class Stateless(TakesEveryStep):
    """Of algorithms that keep nothing from one iteration to the next, and take each batch in one step."""

    def minibatches(self, batch: TokenBatch, generator: torch.Generator) -> Iterator[TokenBatch]:
        """One step takes the whole batch."""
        yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""
