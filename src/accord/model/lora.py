"""LoRA over a frozen linear layer, computed in the layer's own type.

peft computes A and B in their own type, which is float32: over a bfloat16 layer it makes a float32 copy of the input, keeps it
for backward, and adds up three float32 results. Here A and B stay float32 where they are learnt and saved, and are rounded to
the layer's type for their products, as autocast and QLoRA (Dettmers et al. 2023, arXiv:2305.14314, section 3) do; the sum of
layer and adapter is one in-place product. Gradients of A and B come out in the layer's type and are added up in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraConfig
from torch import Tensor, nn
from torch.nn import functional


def use_thin_layers(config: LoraConfig, model: nn.Module) -> None:
    """Let peft put our layers where it would put its own: `ThinLinear`, and those of quantised bases. Models with other kinds of
    linear layers keep peft's."""
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Linear)}
    layers: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: ThinLinear}
    if any(getattr(kind, "quantized", False) for kind in kinds):  # bitsandbytes is loaded only where it is used
        from accord.model.quantized_lora import THIN_LAYERS

        layers = {**THIN_LAYERS, **layers}  # peft takes the first that fits, and a quantised layer is a linear one, too
    if kinds <= set(layers):
        config._register_custom_module(layers)


class ThinForward:
    """A forward pass for peft's layers where nothing but one plain adapter is asked for."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """W x + b + (alpha / r) B A x.

        Args:
            x: [..., in]
            args, kwargs: peft's, for what only its own forward pass does.
        """
        name = None if args or kwargs else self._plain(x)
        if name is None:
            result: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return result
        base = self.get_base_layer()
        layer, weight, bias = (base, None, None) if _is_quantized(base) else (None, base.weight, base.bias)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return _Thin.apply(x, layer, weight, bias, a, b, self.scaling[name])  # type: ignore[no-untyped-call, no-any-return]

    def _plain(self: Any, x: Tensor) -> str | None:
        """The name of the active adapter, if it is one and needs no more than two products."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] in self.lora_variant:
            return None
        name: str = active[0]
        base = self.get_base_layer()
        dropout = self.lora_dropout[name]
        drops = self.training and isinstance(dropout, nn.Dropout) and dropout.p > 0
        fits = _is_quantized(base) or (x.dtype == base.weight.dtype and not base.weight.requires_grad)
        other = drops or not fits or self.lora_B[name].bias is not None
        return None if other or torch.is_autocast_enabled(x.device.type) else name


class ThinLinear(ThinForward, PeftLinear):
    """Over `torch.nn.Linear`."""


def _is_quantized(layer: nn.Module) -> bool:
    return getattr(layer, "quantized", False)


class _Thin(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T, with W and b frozen: a plain weight and bias, or a quantised layer."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: Any, weight: Tensor | None, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        a_RI, b_OR = a.to(x.dtype), (b * scale).to(x.dtype)
        low_TR = x_TI @ a_RI.T
        y_TO = functional.linear(x_TI, weight, bias) if weight is not None else layer.product(x_TI)
        y_TO.addmm_(low_TR, b_OR.T)
        ctx.save_for_backward(x_TI, weight, a_RI, b_OR, low_TR)
        ctx.layer, ctx.scale, ctx.shape, ctx.types = layer, scale, x.shape, (a.dtype, b.dtype)
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight, a_RI, b_OR, low_TR = ctx.saved_tensors
        grad_TO = gradients[0].reshape(len(x_TI), -1)
        low_grad_TR = grad_TO @ b_OR
        needs_x, _, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        grad_a = (low_grad_TR.T @ x_TI).to(ctx.types[0]) if needs_a else None
        # The wide matrix goes second: oneDNN would reorder it otherwise.
        grad_b = (low_TR.T @ grad_TO).T.contiguous().to(ctx.types[1]).mul_(ctx.scale) if needs_b else None
        grad_x = None
        if needs_x:
            grad_TI = grad_TO @ weight if weight is not None else ctx.layer.input_gradient(grad_TO)
            grad_x = grad_TI.addmm_(low_grad_TR, a_RI).view(ctx.shape)
        return grad_x, None, None, None, grad_a, grad_b, None
