"""What learns: an adapter's weights, by layer and matrix, and what an optimiser keeps of each number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from accord.config.optim import plain
from accord.forecast.blocks import EXPERTS
from accord.forecast.modes import Low
from accord.forecast.shapes import Architecture, Experts, Layer
from accord.forecast.tape import FLOAT

MERGED_EXPERTS = ("mixtral", "qwen3_moe")
"""Families whose experts peft adapts with `all-linear`, too."""
LEFT_OUT = {"mamba": ("x", "dt", "out"), "jamba": ("dt",)}
"""Family -> what `all-linear` leaves out of it, as `accord.model.methods` does: weights that are read past any adapter."""
STATES: dict[str, float] = {
    **dict.fromkeys(("adam", "adamw", "nadam", "radam", "adamax", "adadelta", "rprop", "pagedadam", "pagedadamw"), 2.0),
    "lamb": 2.0,
    **dict.fromkeys(("ademamix", "pagedademamix"), 3.0),
    **dict.fromkeys(("rmsprop", "adagrad", "muon", "lion", "pagedlion", "lars", "asgd"), 1.0),
    "sgd": 0.0,
    "adafactor": 0.02,
}
"""Numbers that an optimiser keeps for each weight, of the weight's own type."""
ALWAYS_FLOAT = ("ademamix", "lamb", "lars", "lion", "pagedadam", "pagedadamw", "pagedademamix", "pagedlion")
"""bitsandbytes' own in 32 bits: their numbers are float32 whatever the weight's type."""
BYTES: dict[str, float] = {
    **dict.fromkeys(("adam8bit", "adamw8bit", "pagedadam8bit", "pagedadamw8bit", "lamb8bit"), 2 * (1 + 4 / 256)),
    **dict.fromkeys(("ademamix8bit", "pagedademamix8bit"), 3 * (1 + 4 / 256)),
    **dict.fromkeys(("lion8bit", "pagedlion8bit", "rmsprop8bit", "adagrad8bit", "sgd8bit", "lars8bit"), 1 + 4 / 256),
}
"""Bytes for each weight: 8-bit states with a float32 scale for each block of 256."""


@dataclass(frozen=True)
class Adapter:
    """A learning adapter on a base."""

    parameters: int = 0
    low: Mapping[tuple[int, str], Low] = field(default_factory=dict)
    vectors: Mapping[tuple[int, str], bool] = field(default_factory=dict)
    virtual: int = 0
    """Virtual tokens that go through the trunk before each sequence."""
    prefix: int = 0
    """Virtual tokens of which there are keys and values alone."""
    note: str | None = None


def optimizer_bytes(name: str, keywords: Mapping[str, Any], item: int) -> float:
    """Bytes of state for each weight of so many bytes: AdamW keeps two numbers, 8 bytes of a float32."""
    key = plain(name.rpartition(".")[2])
    if key in BYTES:
        return BYTES[key]
    states = STATES.get(key, 2.0)
    if keywords.get("amsgrad") or (key == "rmsprop" and keywords.get("centered")):
        states += 1
    if key in ("sgd", "rmsprop") and keywords.get("momentum"):
        states += 1
    if key == "adafactor" and keywords.get("beta1") is not None:
        return FLOAT + states * item
    return states * (FLOAT if key in ALWAYS_FLOAT else item)


def saved_section(config: Any, told: Mapping[str, Any]) -> Any:
    """The recipe's section with the shape of a saved adapter, which a run that goes on from it keeps; as
    `accord.model.methods.kept_options`, which needs peft.

    Args:
        config: the section, of any method.
        told: what peft wrote about the saved one.
    """
    targets, feedforward = told.get("target_modules"), told.get("feedforward_modules")
    kept = {
        "targets": tuple(targets) if isinstance(targets, list) else targets,
        "feedforward": tuple(feedforward) if isinstance(feedforward, list) else None,
        "r": told.get("r"),
        "init_r": told.get("target_r" if told.get("rank_pattern") else "init_r"),  # pruned, or not yet
        "dora": told.get("use_dora"),
        "tokens": told.get("num_virtual_tokens"),
        "projection": False,  # networks that made virtual tokens are gone
    }
    known = type(config).model_fields
    return config.model_copy(update={key: value for key, value in kept.items() if key in known and value is not None})


def learning_adapter(config: Any, shape: Architecture, saved: Mapping[str, Any] | None = None) -> Adapter:
    """The weights of the recipe's adapter section on a base.

    Args:
        config: the section, of any method.
        shape: of the base.
        saved: what peft wrote about the adapter that the run goes on from, if it does.
    """
    if saved:
        config = saved_section(config, saved)
    method = config.method
    if method in ("lora", "adalora"):
        rank = config.r if method == "lora" else config.init_r
        low: dict[tuple[int, str], Low] = {}
        for number, layer in enumerate(shape.layers):
            for role, matrix in layer.matrices.items():
                if _targeted(config.targets, number, role, matrix.name, shape):
                    own = rank * (matrix.inputs + matrix.outputs)
                    own += matrix.outputs if getattr(config, "dora", False) else 0
                    own += rank if method == "adalora" else 0
                    low[number, role] = Low(rank, own, getattr(config, "dora", False))
            if layer.experts is not None and config.targets == "all-linear" and shape.family in MERGED_EXPERTS:
                low |= _of_experts(number, layer.experts, rank)
        count = sum(part.parameters for part in low.values())
        if config.targets == "all-linear":
            count += rank * _beside(shape)
        return Adapter(count, low)
    if method == "ia3":
        return _ia3(config, shape)
    if method == "prefix":
        width = max(layer.kv_width for layer in shape.layers)
        count = config.tokens * len(shape.layers) * width
        if config.projection:
            token, hidden = width // 2, config.hidden or width // 2
            count = config.tokens * token + (token + 1) * hidden + (hidden + 1) * len(shape.layers) * width
        return Adapter(count, prefix=config.tokens)
    count = config.tokens * shape.hidden
    if method == "ptuning" and not saved:
        h = config.hidden
        if config.encoder == "mlp":
            count += (shape.hidden + 1) * h + (h + 1) * h + (h + 1) * shape.hidden
        else:  # both ways: four gates of a cell, each with two biases; then two linear layers
            count += sum(8 * h * (inputs + h + 2) for inputs in [shape.hidden] + [2 * h] * ((config.layers or 2) - 1))
            count += (2 * h + 1) * 2 * h + (2 * h + 1) * shape.hidden
    return Adapter(count, virtual=config.tokens)


def _targeted(targets: Any, number: int, role: str, name: str, shape: Architecture) -> bool:
    if targets == "all-linear":
        return role not in LEFT_OUT.get(shape.family, ())
    if isinstance(targets, str):
        part = "mlp" if role in ("gate", "up", "down") else "self_attn"
        return any(
            re.fullmatch(targets, f"{head}{number}.{part}.{name}") for head in ("model.layers.", "transformer.h.")
        )
    return any(target.rpartition(".")[2] == name for target in targets)


def _beside(shape: Architecture) -> int:
    """Inputs and outputs of other linear layers that `all-linear` finds: OPT's projections, Jamba's routers."""
    if shape.family == "opt" and shape.embedding != shape.hidden:
        return 2 * (shape.embedding + shape.hidden)
    if shape.family == "jamba":
        return sum(layer.experts.inputs + layer.experts.count for layer in shape.layers if layer.experts is not None)
    return 0


def _of_experts(number: int, experts: Experts, rank: int) -> dict[tuple[int, str], Low]:
    """peft gives each expert `rank`, and each half of gate and up together its own."""
    inner, outer, wide = 2 * rank * experts.count, rank * experts.count, 2 * experts.width
    sizes = (
        Low(rank, rank * (experts.inputs + experts.count)),
        Low(inner, inner * (experts.inputs + wide)),
        Low(outer, outer * (experts.inputs + experts.width)),
    )
    return {(number, role): low for role, low in zip(EXPERTS, sizes, strict=True)}


def _ia3(config: Any, shape: Architecture) -> Adapter:
    """Factors of keys, values and the feed-forward layer's inner features."""
    vectors: dict[tuple[int, str], bool] = {}
    count = 0
    for number, layer in enumerate(shape.layers):
        for role, matrix in layer.matrices.items():
            if config.targets is None:
                chosen, inside = role in ("k", "v", "qkv", "down"), role == "down"
            else:
                chosen = _targeted(config.targets, number, role, matrix.name, shape)
                inside = matrix.name in {name.rpartition(".")[2] for name in config.feedforward or ()}
            if chosen:
                vectors[number, role] = inside
                count += matrix.inputs if inside else matrix.outputs
    return Adapter(count, vectors=vectors)


def largest_matrix(shape: Architecture) -> int:
    """Numbers of the largest weight: an optimiser's step makes copies of one at a time."""
    experts = max((_expert_tensor(layer) for layer in shape.layers), default=0)
    return max(shape.vocabulary * shape.embedding, largest_linear(shape), experts)


def largest_linear(shape: Architecture) -> int:
    """Numbers of the largest linear layer of a layer, which is what is quantised."""
    return max((m.inputs * m.outputs for layer in shape.layers[:1] for m in layer.matrices.values()), default=0)


def _expert_tensor(layer: Layer) -> int:
    experts = layer.experts
    return 0 if experts is None else 2 * experts.count * experts.inputs * experts.width
