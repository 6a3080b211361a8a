"""Weights by name, each read when it is asked for: of a checkpoint's safetensors files, or of anything else that has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from accord.errors import ModelError


class LazyTensor(Protocol):
    """A tensor that takes no memory until it is asked for with `[...]`, as transformers' loader does, once."""

    def __getitem__(self, index: Any) -> Tensor:
        """The tensor, on the CPU."""
        ...


class _Stored:
    """One tensor of one file."""

    def __init__(self, file: Any, name: str) -> None:
        self.file, self.name = file, name

    def __getitem__(self, index: Any) -> Tensor:
        tensor: Tensor = self.file.get_tensor(self.name)
        return tensor[index]


def open_tensors(base: str) -> dict[str, LazyTensor]:
    """All tensors of a checkpoint, in one file or in shards, in a folder or on the hub.

    They are read with `pread`: pages of a mapped file would count as memory of the process.

    Raises:
        ModelError: there are no safetensors, or a shard is missing.
    """
    index = _find(base, SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        names = [SAFE_WEIGHTS_NAME]
    else:
        with open(index, encoding="utf-8") as file:  # noqa: PTH123  transformers gives a text
            names = sorted(set(json.load(file)["weight_map"].values()))
    tensors: dict[str, LazyTensor] = {}
    for name in names:
        path = _find(base, name)
        if path is None:
            raise ModelError(f"{base} has no {name}; its weights must be there as safetensors to be read one by one")
        handle: Any = safe_open(path, framework="pt", backend="pread")
        tensors |= {key: _Stored(handle, key) for key in handle.keys()}  # noqa: SIM118  no mapping
    return tensors


def _find(base: str, name: str) -> str | None:
    path: str | None = cached_file(
        base, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return path


def load_streaming(
    base: str,
    skeleton: PreTrainedModel,
    config: Any,
    device: torch.device,
    tensors: Mapping[str, LazyTensor],
    quantize: str,
    own: Mapping[str, Any],
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model from tensors that are read, quantised and placed one at a time; and the loader's report.

    Args:
        base: where its generation config is, and its name.
        skeleton: a model of its kind without weights.
        config: of the model.
        device: where it goes.
        tensors: the weights by name.
        quantize: `none`, `int8` or `nf4`.
        own: further arguments of transformers' `from_pretrained`.

    Raises:
        ValueError: a tensor has another shape than the config says, or numbers that int8 has no codes for.
    """
    extra: dict[str, Any] = {}
    if quantize != "none":
        from accord.model.quantized import LoadQuantized  # imports bitsandbytes, which is an extra

        extra["quantization_config"] = LoadQuantized(quantize)
    loaded: Any = type(skeleton).from_pretrained(
        None, config=config, state_dict=dict(tensors), device_map={"": device}, output_loading_info=True, **own, **extra
    )
    model, report = loaded
    # The loader checks no shapes while it quantises.
    shapes = {name: parameter.shape for name, parameter in skeleton.named_parameters()}
    plain = {name: p.shape for name, p in model.named_parameters() if p.is_floating_point() and name in shapes}
    wrong = [name for name, shape in plain.items() if shape != shapes[name]] or sorted(
        key for key, *_ in report["mismatched_keys"]
    )
    if wrong:
        raise ValueError(f"{len(wrong)} tensors have another shape than its config says, such as {wrong[0]}")
    for name, module in model.named_modules():
        scale = getattr(module, "scale", None)
        if isinstance(scale, Tensor) and not scale.isfinite().all():  # of int8
            raise ValueError(
                f"{name} holds numbers beyond float16's 65,504, or none at all, which int8 cannot stand for: use nf4 or none"
            )
    model.name_or_path = model.config.name_or_path = base
    if model.can_generate():
        with suppress(OSError):
            model.generation_config = GenerationConfig.from_pretrained(base)
    return model, report
