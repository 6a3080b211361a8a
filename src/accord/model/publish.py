"""Putting a saved model on the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from accord.errors import ConfigError, ModelError, RunError
from accord.model.card import CARD, look_at, on_hub, write_card
from accord.model.loading import ADAPTER_CONFIG

KEPT_BACK = [".*", "**/.*", "*.bin", "*.pt", "*.pkl", "*.partial"]
"""Never uploaded: hidden files, and weights as pickles."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the file begins that git-lfs keeps in the place of another (git-lfs's docs/spec.md)."""


def check_folder(folder: Path) -> list[str]:
    """Make sure that a folder holds a whole model, and write its card if it has none.

    Returns:
        What a person should know before others use it.

    Raises:
        ModelError: weights or tokenizer are missing, or a file of them is cut or something else than its name says.
    """
    _check_json(folder)
    model = look_at(folder)
    wanted = "adapter_model*.safetensors" if model.base is not None else "model*.safetensors"
    for pattern, what in ((wanted, "weights"), ("tokenizer_config.json", "tokenizer")):
        if not any(folder.glob(pattern)):
            raise ModelError(f"{folder} is not a whole model: its {what} ({pattern}) are missing")
    _check_weights(folder)
    if not (folder / CARD).is_file():
        write_card(folder)
    if model.base is None or on_hub(model.base):
        return []
    return [
        f"the adapter's base is a folder of this machine ({model.base}, in {ADAPTER_CONFIG}), which others do not have; "
        "`accord export --merge FOLDER` makes one whole model of both"
    ]


def _check_json(folder: Path) -> None:
    for file in sorted(folder.glob("*.json")):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{folder} is not a whole model: {file.name} is not JSON: {error}{_pointer(file)}"
            ) from error


def _check_weights(folder: Path) -> None:
    """Each file as long as its header says, and with the tensors that an index promises of it."""
    held: dict[str, set[str]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="pt") as tensors:  # reads the header, and compares the length with it
                held[file.name] = set(tensors.keys())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{folder} is not a whole model: {file.name}: {error}{_pointer(file)}") from error
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    for name, shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
        if shard not in held:
            raise ModelError(f"{folder} is not a whole model: {shard} is missing, which {index.name} names")
        if name not in held[shard]:
            raise ModelError(f"{folder} is not a whole model: {shard} lacks {name}, which {index.name} says is in it")


def _pointer(file: Path) -> str:
    """What to do, if a file is what git leaves in the place of a large one."""
    with file.open("rb") as stream:
        is_pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
    return ": it is git-lfs's pointer to the file, fetch that with `git lfs pull`" if is_pointer else ""


def check_push(repo: str) -> None:
    """What can be known before there is anything to push.

    Raises:
        ConfigError: the name cannot be one, or nobody is logged in.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"push: {repo!r} cannot be the name of a repository: {error}") from error
    if get_token() is None:
        raise ConfigError(
            f"push: {repo} needs a login on the hub: run `hf auth login`, or set HF_TOKEN to a token that may write"
        )


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Upload a folder to a model repository, which is made if it is not there; returns its address.

    Raises:
        ConfigError, ModelError: see `check_push` and `check_folder`.
        RunError: the hub cannot be reached or refuses; the folder is as before.
    """
    check_push(repo)
    check_folder(folder)
    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=folder,
            repo_type="model",
            commit_message="Upload a model trained with Accord",
            ignore_patterns=KEPT_BACK,
        )
    except OSError as error:  # the hub's errors, and those of the network, all are this
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        later = f"accord export {quote(str(folder))} --push {repo}" + (" --private" if private else "")
        raise RunError(
            f"{folder} could not be pushed to {repo}: {reason}. Nothing is lost: the model is in {folder}; push it later "
            f"with: {later}"
        ) from error
    return str(address)
