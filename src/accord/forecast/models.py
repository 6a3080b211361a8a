"""From a model path to its config.json and its adapter's, without torch, transformers or a network."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from accord.errors import ModelError
from accord.forecast.families import architecture
from accord.forecast.shapes import Architecture

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
HEADER_LIMIT = 100 << 20
"""safetensors' own bound of a header, bytes."""


@dataclass(frozen=True)
class Found:
    """A model on this machine."""

    base: str
    """Folder of the base, as a key: roles on one base share it."""
    shape: Architecture
    scorer: bool = False
    """Whether it is a sequence classifier."""
    adapter: Path | None = None
    """Folder of the adapter that the path named."""
    adapter_parameters: int = 0
    """Numbers in that adapter's file."""
    adapter_config: Mapping[str, Any] = field(default_factory=dict)
    """What peft wrote about it."""
    positions: int | None = None
    """Most tokens of a sequence, where the model has a bound."""
    quantized: bool = False
    """Whether its checkpoint holds codes."""

    @property
    def held(self) -> Architecture:
        """What is loaded of it: a sequence classifier has no output layer."""
        return replace(self.shape, tied=True, output_bias=False) if self.scorer else self.shape


def find_model(path: str) -> Found:
    """The shape of what a path or hub name points to.

    Raises:
        ModelError: there is nothing, no config.json in it, or the hub's cache has no copy; names the nearest folder.
    """
    folder = Path(path).expanduser()
    if path.endswith(".gguf"):
        raise ModelError(
            f"{path} is a GGUF file, whose shape the forecast does not read; give the folder of a model with a config.json"
        )
    if (folder / ADAPTER_CONFIG).is_file():
        return _with_adapter(folder)
    if (folder / CONFIG).is_file():
        return _read(folder.resolve())
    if folder.is_dir():
        inside = next((str(sub) for sub in sorted(folder.glob("*")) if (sub / CONFIG).is_file()), None)
        hint = f"; did you mean {inside}?" if inside else ""
        raise ModelError(f"{folder} holds no model: there is no {CONFIG} or {ADAPTER_CONFIG} in it{hint}")
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1 or folder.parent.is_dir():
        raise ModelError(f"no model at {path}{_nearest(folder)}")
    return _read(_cached(path))


def _with_adapter(folder: Path) -> Found:
    told = _json(folder / ADAPTER_CONFIG)
    base = told.get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{folder / ADAPTER_CONFIG} does not name its base model (base_model_name_or_path)")
    beside = folder / base
    found = find_model(str(beside) if not Path(base).exists() and beside.exists() else base)
    count = parameters_of(folder / "adapter_model.safetensors")
    scorer = told.get("task_type") == "SEQ_CLS"
    return replace(found, scorer=scorer, adapter=folder, adapter_parameters=count, adapter_config=told)


@cache
def _read(folder: Path) -> Found:
    told = _json(folder / CONFIG)
    scorer = any("SequenceClassification" in name for name in told.get("architectures") or ())
    text = told.get("text_config", told)
    positions = text.get(
        "max_position_embeddings", text.get("n_positions") if told.get("model_type") == "gpt2" else None
    )
    return Found(
        str(folder),
        architecture(told, str(folder / CONFIG)),
        scorer,
        positions=positions,
        quantized="quantization_config" in told,
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    if not isinstance(told, dict):
        raise ModelError(f"{file} holds a {type(told).__name__}, and a model's config is a mapping")
    return told


def _cached(name: str) -> Path:
    """The folder of a hub name in huggingface_hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    for wanted in (CONFIG, ADAPTER_CONFIG):
        try:
            file = try_to_load_from_cache(name, wanted)
        except ValueError as error:
            raise ModelError(f"{name} is neither a folder nor a name on the hub: {error}") from error
        if isinstance(file, str):
            return Path(file).parent
    raise ModelError(
        f"{name} is not a folder here, and the hub's cache has no {CONFIG} of it. The forecast reads that one file and fetches "
        f"nothing: `hf download {name} {CONFIG}` brings it, or give the path of a folder that holds it"
    )


def _nearest(folder: Path) -> str:
    parent = next(p for p in (folder.parent, *folder.parent.parents) if p.is_dir())
    wanted = folder.relative_to(parent).parts[0] if parent != Path() else folder.parts[0]
    near = difflib.get_close_matches(wanted, [p.name for p in parent.iterdir() if p.is_dir()], n=1)
    return f"; did you mean {parent / near[0]}?" if near else f": {parent.resolve()} has no {wanted!r}"


def parameters_of(file: Path) -> int:
    """Numbers in a safetensors file, from its header alone; 0 if there is none."""
    if not file.is_file():
        return 0
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if not 0 < size <= HEADER_LIMIT:
            raise ModelError(f"{file} is not a safetensors file: its header would have {size} bytes")
        try:
            header = json.loads(stream.read(size))
        except ValueError as error:
            raise ModelError(f"{file} is not a safetensors file: {error}") from error
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
