"""A frozen copy of a model that holds the lower layers in common with it."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from transformers import PreTrainedModel

from accord.errors import ConfigError, ModelError
from accord.model.loading import trunk_of


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a model, whatever their name.

    Raises:
        ModelError: it has no one list of them.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [part for part in trunk_of(model).modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    if not lists or model.config.is_encoder_decoder:
        raise ModelError(
            f"reference.source: shared_layers needs a decoder with one list of layers, and a {type(model).__name__} has none "
            "that can be told; use reference.source: start"
        )
    return lists[0]


def freeze_lower(model: PreTrainedModel, k: int) -> list[Tensor]:
    """Freeze the embeddings and the first `k` layers of a model; returns their tensors.

    An output layer that is tied to the embeddings is among them, and so does not learn either.

    Raises:
        ConfigError: there are not that many layers, or none would be left to learn.
        ModelError: see `layers_of`.
    """
    layers = layers_of(model)
    if not 1 <= k < len(layers):
        raise ConfigError(
            f"reference.k is {k}, and {type(model).__name__} has {len(layers)} layers: between 1 and {len(layers) - 1} can be "
            "shared, so that at least one is left to learn"
        )
    inside = {part for layer in layers for part in layer.modules()}
    embeddings = [part for part in trunk_of(model).modules() if isinstance(part, nn.Embedding) and part not in inside]
    lower = [tensor for part in (*embeddings, *layers[:k]) for tensor in (*part.parameters(), *part.buffers())]
    for tensor in lower:
        tensor.requires_grad_(False)
    return lower


def share_layers(model: PreTrainedModel, k: int) -> PreTrainedModel:
    """Freeze the lower part of a model, see `freeze_lower`, and copy the rest: the frozen copy holds the very tensors of what is
    shared, so it costs the memory of the upper layers alone (as TRL's `create_reference_model(num_shared_layers=k)`).

    Raises:
        ConfigError, ModelError: see `freeze_lower`.
    """
    shared = {id(tensor): tensor for tensor in freeze_lower(model, k)}
    # What deepcopy finds in its memo it takes for copied already.
    return copy.deepcopy(model, shared).requires_grad_(False)
