"""Activation checkpointing: layers keep their input alone, and compute the rest again during backward.

Chen et al. 2016, "Training deep nets with sublinear memory cost" (arXiv:1604.06174). transformers' decoder layers offer the
place for it, `_gradient_checkpointing_func`, but go there only in training mode, which would also turn their dropout on; here
the mode says so to the layer from outside and is as it was again while the layer computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from accord.errors import ModelError


class ActivationCheckpointing:
    """Of one trunk.

    Args:
        trunk: its layers are told where to go; nothing changes outside of `on`.

    Raises:
        ModelError: its layers are not of transformers' kind that can be computed again.
    """

    def __init__(self, trunk: nn.Module) -> None:
        self.layers: list[Any] = [part for part in trunk.modules() if isinstance(part, GradientCheckpointingLayer)]
        if not self.layers:
            raise ModelError(
                f"train.activation_checkpointing: the layers of {type(trunk).__name__} are not of the kind that transformers "
                "computes again (GradientCheckpointingLayer); leave it off"
            )
        self.modes: dict[int, bool] = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Forward passes inside keep the inputs of layers only; backward must run inside, too."""
        self.modes = {id(layer): layer.training for layer in self.layers}
        for layer in self.layers:
            layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, self._checkpoint
            layer.training = True
        try:
            yield
        finally:
            for layer in self.layers:
                layer.gradient_checkpointing, layer.training = False, self.modes[id(layer)]

    def _checkpoint(self, call: Any, *inputs: Any) -> Any:
        # Not the reentrant kind: it would need inputs that take gradients, and a frozen embedding gives none.
        return checkpoint(partial(self._as_it_was, call), *inputs, use_reentrant=False)

    def _as_it_was(self, call: partial[Tensor], *inputs: Any) -> Any:
        """The layer's own forward pass in its own mode; called twice, once by forward and once by backward."""
        layer: Any = call.func.__self__  # type: ignore[attr-defined]
        layer.training = self.modes[id(layer)]
        try:
            return call(*inputs)
        finally:
            layer.training = True
