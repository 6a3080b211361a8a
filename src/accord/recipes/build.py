"""What the recipes share: data with its counts, and the facts a person sees at the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from accord.config import AdapterConfig, DataConfig, ExampleTrain, ModelConfig, Recipe
from accord.data import Encoded, Encoder, Loaded, read_records, set_chat_template, stop_ids
from accord.errors import ConfigError
from accord.model.adapters import has_virtual_tokens, method_of_folder
from accord.model.device import choose_device
from accord.model.loading import locate
from accord.model.roles import Roles
from accord.training.loop import seed_everything
from accord.training.parallel import Ranks
from accord.training.stream import Stream
from accord.types import Record

T = TypeVar("T")


@dataclass(frozen=True)
class Split(Generic[T]):
    """Encoded rows, those to learn from and those held out."""

    train: list[T]
    held_out: list[T]
    facts: dict[str, str]


def open_model(
    model: ModelConfig, adapter: AdapterConfig | None, device: torch.device, seed: int = 0
) -> tuple[Roles, Encoder]:
    """Load the base, and make the encoder of its tokenizer; fresh adapters will start from the seed."""
    seed_everything(seed)
    roles = Roles(model, adapter, device)
    if model.chat_template is not None:
        set_chat_template(roles.tokenizer, model.chat_template)
    return roles, Encoder(roles.tokenizer, stop_ids(roles.tokenizer, roles.model.generation_config))


def check_start(recipe: Recipe) -> None:
    """Refuse to go on from a saved adapter by another method, before weights are loaded.

    Raises:
        ConfigError: the recipe's method is not the adapter's.
    """
    folder = locate(recipe.model.path).adapter
    if folder is None or recipe.adapter is None:
        return
    method = method_of_folder(folder)
    if method != recipe.adapter.method:
        fold = f"`accord merge {folder} FOLDER` and start from FOLDER"
        other = "start from its base" if has_virtual_tokens(folder) else fold
        raise ConfigError(
            f"model.path {folder} is a {method} adapter, and training goes on from it, but adapter.method is "
            f"{recipe.adapter.method}: give --adapter.method {method}, or {other}"
        )


def check_context(roles: Roles, tokens: int, keys: str) -> None:
    """Refuse sequences that are longer than the model can read.

    Args:
        roles: with the model.
        tokens: the longest sequence there will be.
        keys: the recipe's keys that bound it, for the message.

    Raises:
        ConfigError: it is longer than the model's positions reach.
    """
    tokens += roles.virtual_tokens
    limit = getattr(roles.model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        beside = f" (the adapter's {roles.virtual_tokens} virtual ones included)" if roles.virtual_tokens else ""
        raise ConfigError(
            f"{roles.config.path} reads at most {limit} tokens (max_position_embeddings), and sequences would have up to "
            f"{tokens}{beside}: lower {keys}"
        )


def start(recipe: Recipe) -> tuple[Roles, Encoder, Ranks]:
    """Choose the device, join the other ranks, and open the model."""
    check_start(recipe)
    device = choose_device(recipe.placement)
    ranks = Ranks.from_environment() if recipe.placement.type == "torchrun" else Ranks()
    return *open_model(recipe.model, recipe.adapter, device, recipe.seed), ranks


def load_split(recipe: Recipe, want: type[Record], encode: Callable[[Loaded, DataConfig], Encoded[T]]) -> Split[T]:
    """Read, check and encode the rows; hold some out if the recipe says so.

    Raises:
        DataError: see `read_records` and the encoders.
    """
    config = recipe.data
    train, facts = _encoded(config, None, want, encode)
    held_out: list[T] = []
    if config.eval_path is not None:
        held_out, held_facts = _encoded(config, config.eval_path, want, encode)
        facts["held out"] = held_facts["data"]
    elif config.eval_fraction > 0:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
        count = max(1, round(config.eval_fraction * len(train)))
        if count >= len(train):
            raise ConfigError(
                f"data.eval_fraction: {config.eval_fraction} of {len(train)} rows leaves none to learn from"
            )
        held_out = [train[i] for i in sorted(order[:count])]
        train = [train[i] for i in sorted(order[count:])]
        facts["held out"] = f"{count} of these rows"
    return Split(train, held_out, facts)


def _encoded(
    config: DataConfig, path: str | None, want: type[Record], encode: Callable[[Loaded, DataConfig], Encoded[T]]
) -> tuple[list[T], dict[str, str]]:
    loaded = read_records(config if path is None else config.model_copy(update={"limit": None}), path, want)
    encoded = encode(loaded, config)
    rejected = len(loaded.rejections) + len(encoded.rejections)
    used = f"{loaded.path}: {len(encoded.items)} of {loaded.rows} rows ({loaded.format})"
    left = f", {len(loaded.left_out)} of no use here" if loaded.left_out else ""
    return encoded.items, {"data": used + (f", {rejected} rejected" if rejected else "") + left}


def example_stream(items: list[T], recipe: Recipe, train: ExampleTrain, ranks: Ranks) -> tuple[Stream[T], int]:
    """The stream of a recipe that counts steps or epochs, and its number of steps."""
    if train.steps is not None:
        return Stream(items, train.batch_size, recipe.seed, ranks=ranks.size), train.steps
    stream = Stream(items, train.batch_size, recipe.seed, train.epochs, ranks.size)
    return stream, stream.iterations


def model_facts(recipe: Recipe, roles: Roles, weights: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """What learns, on what, where."""
    total = sum(parameter.numel() for parameter in roles.model.parameters())
    learnt = sum(parameter.numel() for parameter in weights.values())
    kind = "all weights" if recipe.adapter is None else recipe.adapter.describe()
    return {
        "model": f"{recipe.model.path} ({total / 1e6:.1f}M parameters, {str(roles.dtype).removeprefix('torch.')})",
        "learns": f"{learnt / 1e6:.2f}M parameters ({kind}), learning rate {recipe.train.learning_rate:g}",
        "device": f"{roles.device}, {torch.get_num_threads()} threads"
        if roles.device.type == "cpu"
        else str(roles.device),
    }
