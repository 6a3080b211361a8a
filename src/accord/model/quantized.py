"""Frozen linear layers in 8 or 4 bits, made one tensor at a time while a model is loaded.

The codes are bitsandbytes' own: `int8` is LLM.int8's absmax by rows (Dettmers et al. 2022, arXiv:2208.07339, section 2), `nf4`
is QLoRA's 4-bit NormalFloat with double quantisation (Dettmers et al. 2023, arXiv:2305.14314, sections 3). The layers are
subclasses of bitsandbytes', so that peft puts adapters on them.

transformers' loader does the rest (names, ties, shards): a quantiser of its own kind is registered with it. This module
imports bitsandbytes, so it is imported only where something is to be quantised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import (
    QuantState,
    dequantize_blockwise,
    get_4bit_type,
    int8_vectorwise_quant,
    quantize_blockwise,
)
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from accord.model.device import return_freed_memory
from accord.model.loading import trunk_of
from accord.ops.products import product_type

METHOD = "accord"
"""Name of the quantiser in transformers' registry; it stays in this process and in no file."""
TILE = 2**22
"""Elements of a weight that are in full precision at once in a product: 8 MiB in bfloat16. Measured on the four matrices of a
layer of width 6144: tiles of 2**24 are as fast forward and a quarter faster backward, and NF4 then holds 440 MB instead of
150."""
PORTION = 2**20
"""Elements that are quantised at once; larger portions are slower, and need some float32 copies of this size."""
BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share one scale, and scales that share one: QLoRA, section 4."""


class _Product(torch.autograd.Function):
    """x W^T + b of a quantised layer, [T, in] -> [T, out]; keeps neither x nor a full-precision W for backward. It gives no
    view, so that peft may add to what it gives in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Quantized) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        return ctx.layer.input_gradient(gradients[0]), None


class _Quantized(nn.Module):
    """What both kinds of layers compute, tile by tile of the weight."""

    quantized = True
    in_features: int
    out_features: int
    bias: Any

    @property
    def scale(self) -> Tensor | None:
        """Factor of each output, float32 [out], where the tiles lack it."""
        return None

    def tiles(self, dtype: torch.dtype, elements: int = TILE) -> Iterator[tuple[slice, Tensor]]:
        """The weight in a float type, some rows at a time."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] of any float type -> [..., out] in the same."""
        y_TO: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), self)  # type: ignore[no-untyped-call]
        return y_TO.view(*x.shape[:-1], -1)

    def product(self, x_TI: Tensor) -> Tensor:
        """x W^T + b in the type of x, [T, out]. No gradient."""
        y_TO = x_TI.new_empty(len(x_TI), self.out_features)
        wide = product_type(x_TI)
        scale, folds, x_TI = self.scale, wide == torch.float16, x_TI.to(wide)
        for rows, weight in self.tiles(wide):
            if scale is not None and folds:  # sums of codes would leave float16's range
                weight.mul_(scale[rows, None])
            part = x_TI @ weight.T
            y_TO[:, rows] = part if scale is None or folds else part * scale[rows]
            del weight, part
        return y_TO if self.bias is None else y_TO.add_(self.bias)

    def input_gradient(self, grad_TO: Tensor) -> Tensor:
        """The gradient of x from that of the product, [T, in], in its type; added up in float32."""
        wide = product_type(grad_TO)
        scale, folds = self.scale, wide == torch.float16
        total = grad_TO.new_zeros(len(grad_TO), self.in_features, dtype=torch.float32)
        for rows, weight in self.tiles(wide):
            part = grad_TO[:, rows].to(wide)
            if scale is not None and folds:  # a gradient times a scale would fall below float16's range
                weight.mul_(scale[rows, None])
            elif scale is not None:
                part = (part * scale[rows]).to(wide)
            total += part @ weight
            del weight, part
        return total.to(grad_TO.dtype)


class Int8Linear(_Quantized, bnb.nn.Linear8bitLt):
    """A linear layer whose weight is stored in int8, one scale a row; input and output keep their type.

    y = (x C^T) · s + b, where C are the codes and s = absmax / 127 belongs to a row of C. Codes are whole numbers up to 127,
    exact in bfloat16, so the product is that of the dequantised weights without the rounding of each. Inputs are not
    rounded: LLM.int8 rounds them to 8 bits as well and keeps columns with outliers apart, and which columns these are
    depends on all tokens of a batch, so a sequence would not get alone what it gets in a packed batch.
    """

    state: Any

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None) -> None:
        super().__init__(in_features, out_features, bias, has_fp16_weights=False, device=device)

    def set_weight(self, weight: Tensor) -> nn.Parameter:
        """Take a weight [out, in] over in int8; returns the parameter that holds the codes."""
        self._hold(*quantize_rows(weight))
        return cast(nn.Parameter, self.weight)

    def _hold(self, codes: Tensor, absmax: Tensor) -> None:
        self._parameters["weight"] = bnb.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False)
        self.state.CB, self.state.SCB = codes, absmax

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move the scales together with the codes, and keep their types."""
        if self.state.SCB is None:
            return super()._apply(fn, recurse)
        codes, self._parameters["weight"] = self.weight.data, None
        super()._apply(fn, recurse)
        self._hold(fn(codes), fn(self.state.SCB).float())
        return self

    @property
    def scale(self) -> Tensor | None:
        """Factor of each output, float32 [out]; the codes of the tiles lack it."""
        absmax: Tensor = self.state.SCB
        return absmax / 127

    def tiles(self, dtype: torch.dtype, elements: int = TILE) -> Iterator[tuple[slice, Tensor]]:
        """The codes in a float type, some rows at a time."""
        codes = self.weight.data
        portions = _portions(codes.shape, elements)
        buffer = torch.empty(portions[0].stop, self.in_features, dtype=dtype, device=codes.device)
        for rows in portions:  # each tile takes the place of the one before
            tile = buffer[: rows.stop - rows.start]
            yield rows, tile.copy_(codes[rows])


class NF4Linear(_Quantized, bnb.nn.Linear4bit):
    """A linear layer whose weight is stored as 4-bit NormalFloat with double quantisation; it computes in the input's type.

    It does not go through bitsandbytes' own products. On CPUs with avx512_bf16 these repack the weights for inference at the
    first pass without gradients, for good, and gradients are lost after that without a word. And the kernel for CPUs
    (0.50.2) takes scales of other blocks where the width is no multiple of the block's 64 weights; so a tile is
    dequantised as the row of blocks that it is.
    """

    weight: Any

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None) -> None:
        super().__init__(in_features, out_features, bias, compress_statistics=True, quant_type="nf4", device=device)
        self.support_avx512bf16_for_cpu = False

    def set_weight(self, weight: Tensor) -> nn.Parameter:
        """Take a weight [out, in] over in 4 bits; returns the parameter that holds the codes."""
        packed, state = quantize_nf4(weight)
        self.weight = bnb.nn.Params4bit(
            packed,
            requires_grad=False,
            quant_state=state,
            blocksize=BLOCK,
            compress_statistics=True,
            quant_type="nf4",
            module=self,
            bnb_quantized=True,
        )
        self.quant_state = state
        return cast(nn.Parameter, self.weight)

    def tiles(self, dtype: torch.dtype, elements: int = TILE) -> Iterator[tuple[slice, Tensor]]:
        """The weight in a float type, some rows at a time."""
        packed, state = self.weight.data.reshape(-1), self.weight.quant_state
        absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset
        width = self.in_features
        if dtype == torch.float32:
            yield from _float32_tiles(packed, absmax, state.code, _portions(state.shape, elements), width)
            return
        for rows in _portions(state.shape, elements):
            first, last = rows.start * width, rows.stop * width
            count = last - first
            blocks = (count // BLOCK, BLOCK) if count % BLOCK == 0 else (1, count)
            flat = torch.ops.bitsandbytes.dequantize_4bit.default(
                packed[first // 2 : (last + 1) // 2],
                absmax[first // BLOCK : math.ceil(last / BLOCK)],
                BLOCK,
                "nf4",
                blocks,
                dtype,
            )
            yield rows, flat.reshape(-1, width)
            del flat


def _float32_tiles(
    packed: Tensor, absmax: Tensor, code: Tensor, portions: Sequence[slice], width: int
) -> Iterator[tuple[slice, Tensor]]:
    """Tiles of a 4-bit weight, each in the place of the one before: bitsandbytes' kernel makes a tensor for each, which left
    1.2 GB of holes in the heap of a 20B model's update. Two codes lie in a byte, so a table of 256 pairs gives both at once.

    Args:
        packed: the codes, uint8, two in a byte, the first in the upper half.
        absmax: scale of each block of 64, float32.
        code: the 16 values.
        portions: rows of each tile; only the last one's end may lie within a block.
        width: of a row.
    """
    byte, code = torch.arange(256, device=packed.device), code.to(packed.device)
    pairs = torch.stack([code[byte >> 4], code[byte & 15]], dim=1).view(torch.int64).reshape(-1)
    most = (portions[0].stop * width + 1) // 2
    places, both = packed.new_empty(most, dtype=torch.int32), packed.new_empty(most, dtype=torch.int64)
    for rows in portions:
        first, last = rows.start * width, rows.stop * width
        count, half = last - first, (last - first + 1) // 2
        places[:half].copy_(packed[first // 2 : first // 2 + half])
        torch.index_select(pairs, 0, places[:half], out=both[:half])
        flat = both[:half].view(torch.float32)[:count]
        whole, scales = count // BLOCK, absmax[first // BLOCK :]
        flat[: whole * BLOCK].view(-1, BLOCK).mul_(scales[:whole, None])
        flat[whole * BLOCK :].mul_(scales[whole : whole + 1])
        yield rows, flat.view(-1, width)


LAYERS: dict[str, type[Int8Linear] | type[NF4Linear]] = {"int8": Int8Linear, "nf4": NF4Linear}
"""`model.quantize` -> the layer."""
FLAGS = {"int8": "is_loaded_in_8bit", "nf4": "is_loaded_in_4bit"}
"""How peft knows which of its layers wrap those of a base."""


def _portions(shape: Sequence[int], elements: int) -> list[slice]:
    """Rows of a matrix in portions of about so many elements; multiples of 64 rows, so that no block is cut."""
    rows = max(1, elements // shape[1] // BLOCK) * BLOCK
    return [slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]


def quantize_rows(weight: Tensor, elements: int = PORTION) -> tuple[Tensor, Tensor]:
    """LLM.int8's codes of a weight, int8 [out, in], and the greatest absolute value of each row, float32 [out]; the same that
    bitsandbytes gives for the whole, computed in portions."""
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    absmax = torch.empty(len(weight), device=weight.device)
    for rows in _portions(weight.shape, elements):
        codes[rows], absmax[rows], _ = int8_vectorwise_quant(weight[rows].to(torch.float16))
    return codes, absmax


def quantize_nf4(weight: Tensor, elements: int = PORTION) -> tuple[Tensor, QuantState]:
    """QLoRA's codes of a weight [out, in], two in a byte, with their state; the same that bitsandbytes gives for the whole,
    computed in portions."""
    count = weight.numel()
    packed = torch.empty((count + 1) // 2, 1, dtype=torch.uint8, device=weight.device)
    absmax = torch.empty(math.ceil(count / BLOCK), device=weight.device)
    for rows in _portions(weight.shape, elements):
        part = weight[rows].contiguous()
        codes, scales = torch.ops.bitsandbytes.quantize_4bit.default(part, BLOCK, "nf4", torch.uint8)
        first = rows.start * weight.shape[1]
        packed[first // 2 : first // 2 + len(codes)] = codes
        absmax[first // BLOCK : first // BLOCK + len(scales)] = scales
    offset = absmax.mean()
    nested, second = quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK)
    code = get_4bit_type("nf4", device=weight.device)
    return packed, QuantState(
        absmax=nested,
        shape=weight.shape,
        code=code,
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=weight.dtype,
        offset=offset,
        state2=second,
    )


def dequantize(layer: Int8Linear | NF4Linear) -> Tensor:
    """The weight of a quantised layer, float32 [out, in]."""
    weight = torch.empty(layer.out_features, layer.in_features, device=layer.weight.device)
    for rows, tile in layer.tiles(torch.float32):
        weight[rows] = tile
    return weight if layer.scale is None else weight * layer.scale[:, None]


# --- transformers' loader --------------------------------------------------------------------------------------------


@register_quantization_config(METHOD)
class LoadQuantized(QuantizationConfigMixin):
    """Tells transformers' loader to quantise while it loads.

    Args:
        kind: `int8` or `nf4`.
    """

    def __init__(self, kind: str, **_: Any) -> None:
        self.quant_method: Any = METHOD
        self.kind = kind


@register_quantizer(METHOD)
class Quantizer(HfQuantizer):
    """Puts quantised layers into the empty model, and fills them as their weights arrive."""

    requires_calibration = False

    quantization_config: Any

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        kept = set(self.get_modules_to_not_convert(model, None, getattr(model, "_keep_in_fp32_modules", None)))
        inside = {id(module) for module in trunk_of(model).modules()}
        for name, module in list(model.named_modules()):
            if id(module) not in inside or not quantizable(module) or name in kept or name.split(".")[-1] in kept:
                continue
            with torch.device("meta"):
                layer: Any = LAYERS[self.quantization_config.kind](*_features(module), module.bias is not None)
            layer.transposed = isinstance(module, Conv1D)
            model.set_submodule(name, layer.requires_grad_(False))
        return model

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        """Whether a tensor is the weight of one of these layers."""
        owner, name = param_name.rpartition(".")[::2]
        return name == "weight" and isinstance(model.get_submodule(owner), tuple(LAYERS.values()))

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: Tensor) -> float:
        """Bytes of an element, for the loader's reservation on an accelerator."""
        if self.param_needs_quantization(model, param_name):
            return 1.0 if self.quantization_config.kind == "int8" else 0.5
        return float(param.element_size())

    def get_quantize_ops(self) -> ConversionOps:
        """What is done to such a tensor."""
        return _Quantize()

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        setattr(model, FLAGS[self.quantization_config.kind], True)
        self.remove_quantization_config(model)
        return model

    def is_serializable(self) -> bool:
        """Quantised weights are never saved: adapters name the base they were loaded from."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Adapters on it are."""
        return True


class _Quantize(ConversionOps):
    """One tensor into one layer."""

    def convert(self, input_dict: dict[str, Any], *_: Any, model: Any = None, **__: Any) -> dict[str, Any]:
        result = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            layer = model.get_submodule(name.rpartition(".")[0])
            weight = weight.T if layer.transposed else weight
            if tuple(weight.shape) != (layer.out_features, layer.in_features):
                raise ValueError(f"{name} has the shape {tuple(weight.shape)}, and the model another")
            result[name] = layer.set_weight(weight)
            del weight
            return_freed_memory()
        return result


def quantizable(module: nn.Module) -> bool:
    """Whether a module is a plain linear layer, GPT-2's transposed kind included."""
    return type(module) in (nn.Linear, Conv1D)


def _features(module: Any) -> tuple[int, int]:
    """Inputs and outputs."""
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return int(inputs), int(outputs)
    return module.in_features, module.out_features
