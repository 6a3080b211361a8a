"""How a model is run in a pass: what learns, in which types, with which adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from accord.forecast.tape import FLOAT


@dataclass(frozen=True, slots=True)
class Low:
    """A low-rank adapter on a linear layer."""

    rank: int
    parameters: int
    dora: bool = False


@dataclass(frozen=True, slots=True)
class Pass:
    """How a model is run."""

    item: int
    """Bytes of a number of the base's compute type."""
    trains_base: bool = False
    """Full fine-tuning: all weights learn."""
    frozen_layers: int = 0
    """With `trains_base`: the embeddings and so many layers do not learn."""
    low: Mapping[tuple[int, str], Low] = field(default_factory=dict)
    """Low-rank adapters by layer and role of the matrix."""
    vectors: Mapping[tuple[int, str], bool] = field(default_factory=dict)
    """IA3's vectors by layer and role of the matrix: whether they scale its input."""
    adapter_item: int = FLOAT
    """Bytes of a number of an adapter that learns (peft keeps them in float32)."""
    dropout: float = 0.0
    """Of the adapter's input."""
    base_dropout: bool = False
    """Whether the base's own dropout acts."""
    longest: int = 0
    """Tokens of the longest sequence, for what grows with its square."""
    virtual: int = 0
    """Virtual tokens before each sequence, keys and values alone."""
    inputs_learn: bool = False
    """Whether a gradient flows to the embeddings (virtual tokens)."""
    quantized: int = 0
    """Bits of a quantised base; 0: none."""
    thin: bool = False
    """Whether low-rank adapters compute in the base's type, added to its result in place."""
    own_backward: bool = False
    """Whether attention's backward is ours, which computes the result and its sums again (see `ops.attention`)."""
    joined: int = 0
    """Keys of sequences that attend to a prefix which another computed, their own behind it."""
