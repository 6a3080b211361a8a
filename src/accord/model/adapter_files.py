"""The files of a saved adapter, read so that damage is told by the file that has it."""

from __future__ import annotations

from pathlib import Path

import peft
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from accord.errors import ModelError
from accord.model.loading import ADAPTER_CONFIG, read_adapter_config

WEIGHTS = "adapter_model.safetensors"
FACTORS = ("lora_", "ia3_")
"""How peft's names of an adapter's weights begin."""
AGAIN = "save or fetch the adapter again"


def saved_config(folder: Path) -> peft.PeftConfig:
    """peft's config of a saved adapter.

    Raises:
        ModelError: the file is damaged, or peft does not understand it.
    """
    kind = read_adapter_config(folder)["peft_type"]
    try:
        return peft.PeftConfig.from_pretrained(str(folder))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{folder / ADAPTER_CONFIG}: this version of peft ({peft.__version__}) cannot read this {kind} adapter: "
            f"{type(error).__name__}: {error}"
        ) from error


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of a saved adapter by peft's names, on the CPU.

    Raises:
        ModelError: they are not there, or damaged.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        raise ModelError(f"{folder} holds an adapter's config, but not its weights: there is no {WEIGHTS}; {AGAIN}")
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read ({error}), as if it were cut short: {AGAIN}") from error


def is_factor(name: str) -> bool:
    """Whether a tensor is the adapter's own, and none of the base or of a head."""
    return any(part.startswith(FACTORS) for part in name.split("."))
