"""A LoRA adapter folded into its base for a while: sampling then costs what it costs without an adapter.

The folded weights are tensors of their own that stand in the base's parameters while the context lasts; the base's are put
aside, not overwritten, so they come back bit for bit whatever happens. That takes the memory of one copy of the layers that
the adapter changes, and is the only place where a part of the base is held twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

FOLDABLE = (torch.float32, torch.bfloat16)
LINEAR = (nn.Linear, Conv1D)


def folded_layers(model: nn.Module, adapter: str) -> list[LoraLayer] | None:
    """The layers that an adapter changes, if it can be folded into all of them; `None` if not: DoRA and other variants, biases
    of their own, quantised or sharded weights, layers that are not linear (embeddings, stacked experts), weights that two layers
    share."""
    layers: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, LoraLayer) and (adapter in module.lora_A or adapter in module.lora_embedding_A)
    ]
    weights = [getattr(layer.get_base_layer(), "weight", None) for layer in layers]
    plain = all(
        isinstance(layer.get_base_layer(), LINEAR)
        and type(weight) is nn.Parameter
        and type(weight.data) is Tensor
        and weight.dtype in FOLDABLE
        and hasattr(layer, "get_delta_weight")
        and adapter not in getattr(layer, "lora_variant", {})
        and not getattr(layer, "lora_bias", {}).get(adapter, False)
        for layer, weight in zip(layers, weights, strict=True)
    )
    return layers if layers and plain and len({id(weight) for weight in weights}) == len(weights) else None


def folded_bytes(layers: list[LoraLayer]) -> int:
    """Memory that folding takes."""
    return sum(_weight(layer).nbytes for layer in layers)


def _weight(layer: LoraLayer) -> nn.Parameter:
    weight = layer.get_base_layer().weight
    assert isinstance(weight, nn.Parameter)
    return weight


@contextmanager
def folded(layers: list[LoraLayer], adapter: str, seed: int) -> Iterator[None]:
    """W + delta stands in place of W in each layer; the adapter itself must be off, or it would count twice.

    Args:
        layers: see `folded_layers`.
        adapter: whose delta.
        seed: of the rounding to bfloat16.
    """
    aside: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for number, layer in enumerate(layers):
            weight, linear = _weight(layer), cast(Any, layer)
            with torch.no_grad():
                exact = weight.float() + linear.get_delta_weight(adapter).float()
                stands_in = (
                    exact if weight.dtype == torch.float32 else round_either_way(exact, seed * len(layers) + number)
                )
            aside.append((weight, weight.data))
            weight.data = stands_in
        yield
    finally:
        for weight, original in aside:
            weight.data = original


def round_either_way(exact: Tensor, seed: int) -> Tensor:
    """float32 -> bfloat16, up or down at random so that the mean is the exact number (stochastic rounding).

    To the nearest would be wrong here: W is a bfloat16 number itself, so W + delta rounds back to W wherever delta is less than
    half a step, and an adapter that has learnt little would vanish. Gupta et al. 2015 (arXiv:1502.02551, section 3) for the
    same loss of small updates.
    """
    generator = torch.Generator(exact.device).manual_seed(seed)
    noise = torch.randint(0, 2**16, exact.shape, dtype=torch.int32, device=exact.device, generator=generator)
    bits = exact.view(torch.int32)
    rounded = ((bits + noise) & -(2**16)).view(torch.float32)
    return torch.where(exact.isfinite(), rounded, exact).to(torch.bfloat16)
