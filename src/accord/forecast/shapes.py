"""The shape of a model, from its config.json alone: layers, matrices, parameters. No weight is read.

What is counted here equals transformers' own models on the meta device, parameter by parameter; the tests compare them. The
families are in `families` and `hybrids`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Config = Mapping[str, Any]
Attention = Literal["segments", "eager", "mamba"]
Norm = Literal["rms", "gemma", "t5", "layer", "cohere"]
Reads = Literal["packed", "rows", "encoder-decoder"]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer."""

    name: str
    """Of its module, as adapters target it, such as `q_proj`."""
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Weight and bias."""
        return self.inputs * self.outputs + self.bias * self.outputs


@dataclass(frozen=True, slots=True)
class Experts:
    """Feed-forward layers of which each token goes through some. They are tensors of three dimensions, not linear layers."""

    count: int
    chosen: int
    """For each token."""
    inputs: int
    width: int

    @property
    def parameters(self) -> int:
        """Gate, up and down of each expert, and the router."""
        return self.count * 3 * self.inputs * self.width + self.count * self.inputs


@dataclass(frozen=True, slots=True)
class Layer:
    """One block of a model."""

    matrices: Mapping[str, Matrix]
    """By what they do: `q k v` or `qkv`, `o`, `gate up down` or `up down`; others are counted and not followed."""
    heads: int
    kv_heads: int
    head_dim: int
    norms: int
    """Parameters of all its norms, and others that are neither a matrix nor an expert's."""
    norm: Norm = "rms"
    activation: str = "silu"
    attention: Attention = "segments"
    rotary: float = 1.0
    """Share of a head's features that are rotated; 0: none."""
    window: int | None = None
    qk_norm: bool = False
    sandwich: bool = False
    """A norm after attention and after the feed-forward layer, too (Gemma 3)."""
    parallel: Literal["no", "two norms", "one norm"] = "no"
    """Attention and feed-forward layer read the same input."""
    dropout: float = 0.0
    attention_dropout: float = 0.0
    experts: Experts | None = None
    state: int = 0
    """Numbers of recurrent state that a Mamba layer keeps for each sequence."""

    @property
    def parameters(self) -> int:
        """All of the block."""
        experts = self.experts.parameters if self.experts is not None else 0
        return sum(matrix.parameters for matrix in self.matrices.values()) + experts + self.norms

    @property
    def kv_width(self) -> int:
        """Numbers that the cache keeps of a token: keys and values."""
        return 0 if self.attention == "mamba" else 2 * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's shape."""

    family: str
    hidden: int
    vocabulary: int
    layers: tuple[Layer, ...]
    tied: bool
    """The output layer is the embedding's transpose."""
    embedding: int
    """Width of the embeddings, and of what the output layer reads."""
    other: int = 0
    """Parameters outside of layers, embeddings and output layer: positions, last norms, an image tower."""
    output_bias: bool = False
    dtype: str = "float32"
    """Of the checkpoint."""
    reads: Reads = "packed"
    encoder_layers: int = 0
    """How many of `layers` are the encoder's."""
    approximate: str | None = None
    """Why memory is only approximate; `None`: it is computed layer by layer."""
    final_norm: Norm = "rms"
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def output_parameters(self) -> int:
        """Of the output layer, where it has its own."""
        own = 0 if self.tied else self.vocabulary * self.embedding
        return own + self.output_bias * self.vocabulary

    @property
    def parameters(self) -> int:
        """Of the whole causal (or sequence-to-sequence) model."""
        inside = sum(layer.parameters for layer in self.layers)
        return self.vocabulary * self.embedding + inside + self.other + self.output_parameters

    @property
    def linear_parameters(self) -> int:
        """Those in linear layers other than the output layer: what a quantised base packs."""
        return sum(m.inputs * m.outputs for layer in self.layers for m in layer.matrices.values())


def split(hidden: int, heads: int, kv: int, dim: int, bias: bool, out_bias: bool | None = None) -> dict[str, Matrix]:
    """q, k, v and o as matrices of their own."""
    return {
        "q": Matrix("q_proj", hidden, heads * dim, bias),
        "k": Matrix("k_proj", hidden, kv * dim, bias),
        "v": Matrix("v_proj", hidden, kv * dim, bias),
        "o": Matrix("o_proj", heads * dim, hidden, bias if out_bias is None else out_bias),
    }


def gated(hidden: int, width: int, bias: bool = False) -> dict[str, Matrix]:
    """gate, up and down of a gated feed-forward layer."""
    return {
        "gate": Matrix("gate_proj", hidden, width, bias),
        "up": Matrix("up_proj", hidden, width, bias),
        "down": Matrix("down_proj", width, hidden, bias),
    }
