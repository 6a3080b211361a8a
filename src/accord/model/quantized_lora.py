"""LoRA over quantised layers, computed in the type of their inputs; see `lora`. Imports bitsandbytes.

The names end in Linear: peft's `all-linear` knows layers that have an adapter already by that.
"""

from __future__ import annotations

from peft.tuners.lora.bnb import Linear4bit, Linear8bitLt
from torch import nn

from accord.model.lora import ThinForward
from accord.model.quantized import Int8Linear, NF4Linear


class ThinInt8Linear(ThinForward, Linear8bitLt):
    """Over `Int8Linear`."""


class ThinNF4Linear(ThinForward, Linear4bit):
    """Over `NF4Linear`."""


THIN_LAYERS: dict[type[nn.Module], type[nn.Module]] = {Int8Linear: ThinInt8Linear, NF4Linear: ThinNF4Linear}
