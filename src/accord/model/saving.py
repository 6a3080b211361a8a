"""Whole models on disk, as transformers writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from accord.model.loading import quiet_progress


def save_model(model: Any, folder: Path) -> None:
    """Write a model of transformers, with its configs.

    Args:
        model: its generation config is mended where transformers would refuse to write it; see `mend_generation`.
        folder: made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mend_generation(model)
    with quiet_progress():
        model.save_pretrained(folder)


def mend_generation(model: Any) -> None:
    """Make a generation config one that transformers writes.

    transformers reads a temperature, `top_p` or `top_k` without `do_sample` with a warning and refuses to save it, which would
    end a run after all its work. Who set one of them meant to sample. Of a config that is still refused, such as one of beam
    search without beams, the special tokens are kept.
    """
    own: GenerationConfig | None = getattr(model, "generation_config", None)
    if own is None or not model.can_generate() or _is_accepted(own):
        return
    own.do_sample = True
    if not _is_accepted(own):
        told = own.to_diff_dict().items()
        tokens = {key: value for key, value in told if key.endswith("_token_id") and value != -1}
        model.generation_config = GenerationConfig(**tokens)


def _is_accepted(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True
