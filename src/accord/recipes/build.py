"""What the recipes share: data with its counts, and the facts a person sees at the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from accord.config import DataConfig, ExampleTrain, LoraConfig, ModelConfig, Recipe
from accord.data import Encoded, Encoder, Loaded, read_records, set_chat_template, stop_ids
from accord.errors import ConfigError
from accord.model.device import choose_device
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
    model: ModelConfig, adapter: LoraConfig | None, device: torch.device, seed: int = 0
) -> tuple[Roles, Encoder]:
    """Load the base, and make the encoder of its tokenizer; fresh adapters will start from the seed."""
    seed_everything(seed)
    roles = Roles(model, adapter, device)
    if model.chat_template is not None:
        set_chat_template(roles.tokenizer, model.chat_template)
    return roles, Encoder(roles.tokenizer, stop_ids(roles.tokenizer, roles.model.generation_config))


def check_context(roles: Roles, tokens: int, keys: str) -> None:
    """Refuse sequences that are longer than the model can read.

    Args:
        roles: with the model.
        tokens: the longest sequence there will be.
        keys: the recipe's keys that bound it, for the message.

    Raises:
        ConfigError: it is longer than the model's positions reach.
    """
    limit = getattr(roles.model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise ConfigError(
            f"{roles.config.path} reads at most {limit} tokens (max_position_embeddings), and sequences would have up to "
            f"{tokens}: lower {keys}"
        )


def start(recipe: Recipe) -> tuple[Roles, Encoder, Ranks]:
    """Choose the device, join the other ranks, and open the model."""
    device = choose_device(recipe.placement)
    ranks = Ranks.from_environment() if recipe.placement.type == "torchrun" else Ranks()
    return *open_model(recipe.model, recipe.adapter, device, recipe.seed), ranks


def load_split(recipe: Recipe, encode: Callable[[Loaded, DataConfig], Encoded[T]]) -> Split[T]:
    """Read, check and encode the rows; hold some out if the recipe says so.

    Raises:
        DataError: see `read_records` and the encoders.
    """
    config = recipe.data
    train, facts = read_rows(config, recipe.rows_become, encode)
    held_out: list[T] = []
    if config.eval_path is not None:
        held_out, held_facts = read_rows(config, recipe.rows_become, encode, config.eval_path)
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


def read_rows(
    config: DataConfig,
    want: type[Record] | None,
    encode: Callable[[Loaded, DataConfig], Encoded[T]],
    path: str | None = None,
) -> tuple[list[T], dict[str, str]]:
    """Encoded rows of `config.path`, or of another file, and how many of them are used.

    Raises:
        DataError: see `read_records` and the encoders.
    """
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
    kind = "all weights" if recipe.adapter is None else f"{recipe.adapter.method} r={recipe.adapter.r}"
    return {
        "model": f"{recipe.model.path} ({total / 1e6:.1f}M parameters, {str(roles.dtype).removeprefix('torch.')})",
        "learns": f"{learnt / 1e6:.2f}M parameters ({kind}), learning rate {recipe.train.learning_rate:g}",
        "device": f"{roles.device}, {torch.get_num_threads()} threads"
        if roles.device.type == "cpu"
        else str(roles.device),
    }
