"""Adapters by their names on the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from transformers.utils import cached_file

from accord.errors import ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = (WEIGHTS, "*.json", "*.jinja", "*.txt", "*.model")
"""An adapter, what stands beside it about scores, labels and prompts, and its tokenizer."""


def fetch_adapter(name: str) -> Path | None:
    """The folder of an adapter's files in the hub's cache, fetched if need be; `None` if the name is no adapter's, or nobody can
    say: then loading a model of that name tells why.

    Raises:
        ModelError: it is one, but cannot be fetched, or has no weights as safetensors.
    """
    try:
        config = cached_file(
            name, CONFIG, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
    except OSError:
        return None
    if config is None:
        return None
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(FILES), ignore_patterns=["*/*"]))
    except Exception as error:  # the hub client has no common base for its many errors
        raise ModelError(
            f"the adapter {name} cannot be fetched from the hub: {type(error).__name__}: {error}"
        ) from error
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{name} on the hub has an adapter's config, but there is no {WEIGHTS} (in {folder})")
    return folder
