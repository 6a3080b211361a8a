"""A frozen copy of a model that holds the lower layers in common with it."""

from __future__ import annotations

import copy

from torch import nn
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


def share_layers(model: PreTrainedModel, k: int) -> PreTrainedModel:
    """Freeze the embeddings and the first `k` layers of a model, and copy the rest: the frozen copy holds the very tensors of
    what is shared, so it costs the memory of the upper layers alone (as TRL's `create_reference_model(num_shared_layers=k)`).

    An output layer that is tied to the embeddings is shared, and so does not learn either.

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
    shared = [tensor for part in (*embeddings, *layers[:k]) for tensor in (*part.parameters(), *part.buffers())]
    # What deepcopy finds in its memo it takes for copied already; freezing the copy then freezes what it shares.
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared}).requires_grad_(False)
