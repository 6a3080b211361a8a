"""What the recipes share: data with its counts, and the facts a person sees at the start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from accord.config import (
    AdapterConfig,
    ClassifyRecipe,
    DataConfig,
    ExampleTrain,
    ModelConfig,
    Recipe,
    RewardRecipe,
    TrainConfig,
)
from accord.config.optim import OWN_SCHEDULES
from accord.data import Encoded, Encoder, Loaded, read_records, set_chat_template, stop_ids
from accord.errors import ConfigError, ModelError
from accord.model.classifiers import refuse_without_words
from accord.model.device import choose_device
from accord.model.loading import load_tokenizer, locate, read_adapter_config, read_config, weight_type
from accord.model.merging import has_virtual_tokens, method_of_folder
from accord.model.roles import Roles
from accord.ops.products import fast_type
from accord.recipes.family import check_family, reading_facts
from accord.recipes.going_on import learning_adapter
from accord.training.optim import check_optimizer
from accord.training.parallel import Ranks
from accord.training.schedule import find_schedule
from accord.training.seeds import seed_everything
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
    """Refuse to go on from a saved adapter of another method or for another task, before weights are loaded.

    Raises:
        ConfigError: the recipe's method is not the adapter's.
        ModelError: it is a reward model's or a classifier's, and the recipe is about a language model.
    """
    location = locate(recipe.model.source)
    folder = location.adapter
    if folder is not None and not isinstance(recipe, RewardRecipe | ClassifyRecipe):
        refuse_without_words(recipe.model.path, location)
    reference = getattr(getattr(recipe, "reference", None), "path", None)
    if reference is not None and Path(reference).expanduser().exists():
        refuse_without_words(reference, locate(reference))
    if folder is None or recipe.adapter is None:
        return
    method = method_of_folder(folder)
    if method != recipe.adapter.method:
        fold = f"`accord merge {quote(str(folder))} FOLDER` and start from FOLDER"
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
    check_positions(roles.config.path, roles.model.config, tokens, roles.virtual_tokens, keys)


def check_positions(path: str, config: Any, tokens: int, virtual: int, keys: str) -> None:
    """What `check_context` does, by the model's config alone; `virtual` are the adapter's tokens before each sequence.

    Raises:
        ConfigError: sequences are longer than the model's positions reach.
    """
    tokens += virtual
    limit, same = positions_of(config), _same_turns(config)
    if limit is None or tokens <= limit:
        return
    rule = "(max_position_embeddings)"
    if limit == same:
        rule = (
            "here (rope_type: longrope, original_max_position_embeddings): one longer sequence would give a whole batch other "
            "rotary frequencies"
        )
    beside = f" (the adapter's {virtual} virtual ones included)" if virtual else ""
    raise ConfigError(
        f"{path} reads at most {limit} tokens {rule}, and sequences would have up to {tokens}{beside}: lower {keys}"
    )


def positions_of(config: Any) -> int | None:
    """Most tokens of a sequence; `None`: as many as memory holds."""
    bounds = (getattr(config.get_text_config(), "max_position_embeddings", None), _same_turns(config))
    return min((bound for bound in bounds if bound is not None), default=None)


def _same_turns(config: Any) -> int | None:
    """Tokens up to which all sequences have the same rotary frequencies. Phi 3 with 128k positions and its kin have others
    beyond, and transformers takes one or the other for a whole call, by its longest sequence: none would be what it is alone."""
    given = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [given] if "rope_type" in given else [part for part in given.values() if isinstance(part, dict)]
    firsts = [part.get("original_max_position_embeddings") for part in kinds if part.get("rope_type") == "longrope"]
    return min((first for first in firsts if first is not None), default=None)


def longest_allowed(recipe: Recipe) -> int:
    """Tokens that neither `data.max_tokens` nor the model's positions forbid; virtual tokens take positions too."""
    config = read_config(locate(recipe.model.source).base, recipe.model.trust_remote_code)
    positions = positions_of(config)
    return min(recipe.data.max_tokens, recipe.data.max_tokens if positions is None else positions - _virtual(recipe))


def _virtual(recipe: Recipe) -> int:
    """The most virtual tokens that policy or reference will put before a sequence."""
    start = locate(recipe.model.source).adapter
    reference = getattr(getattr(recipe, "reference", None), "path", None)
    folders = [start, locate(reference).adapter if reference is not None else None]
    saved = [read_adapter_config(folder).get("num_virtual_tokens") or 0 for folder in folders if folder is not None]
    return max([*saved, getattr(recipe.adapter, "tokens", 0) if start is None else 0])


def check_tokenizer(path: str, roles: Roles) -> None:
    """Reference, critic and reward read the policy's token ids, so they must mean the same by them."""
    check_vocabulary(path, roles.config, roles.tokenizer)


def check_vocabulary(path: str, policy: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """What `check_tokenizer` does, by the policy's tokenizer alone.

    Raises:
        ModelError: the tokenizer at `path` has another vocabulary.
    """
    location = locate(path)
    config = policy.model_copy(update={"path": path})
    if load_tokenizer(config, location).get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"{path} has another tokenizer than the policy {policy.path}; it would read other words. Take one that was "
            "trained on the policy's base; a reward model can also read text with its own tokenizer, as `classifier` or "
            "behind `accord serve-reward`"
        )


def check_training(train: TrainConfig) -> None:
    """Find the optimiser and the schedule, before any weights are loaded.

    Raises:
        ConfigError: one of them is not there, or has no such keyword.
    """
    check_optimizer(train)
    if train.schedule.target not in OWN_SCHEDULES:
        find_schedule(train)


def start(recipe: Recipe) -> tuple[Roles, Encoder, Ranks]:
    """Check what needs no weights, choose the device, join the other ranks, and open the model."""
    check_training(recipe.train)
    check_family(recipe)
    check_start(recipe)
    device = choose_device(recipe.placement)
    ranks = Ranks.from_environment() if recipe.placement.type == "torchrun" else Ranks()
    return *open_model(recipe.model, recipe.adapter, device, recipe.seed), ranks


def load_split(recipe: Recipe, encode: Callable[[Loaded, DataConfig], Encoded[T]]) -> Split[T]:
    """Read, check and encode the rows; hold some out if the recipe says so: whole rows, all that was made of them.

    Raises:
        DataError: see `read_records` and the encoders.
        ConfigError: no row would be left to learn from.
    """
    config = recipe.data
    encoded, facts, origins = _read(config, recipe.rows_become, encode)
    kept_back = held_out_rows(recipe, origins)
    placed = list(zip(encoded.items, encoded.origins, strict=True))
    train = [item for item, origin in placed if origin not in kept_back]
    held_out = [item for item, origin in placed if origin in kept_back]
    if kept_back and not (train and held_out):
        which = "to learn from" if held_out else "that are held out"
        raise ConfigError(f"data.eval_fraction: {config.eval_fraction}: none of the rows {which} can be used")
    if config.eval_path is not None:
        held_out, held_facts = read_rows(config, recipe.rows_become, encode, config.eval_path)
        facts["held out"] = held_facts["data"]
    elif kept_back:
        count = len(kept_back & set(encoded.origins))
        facts["held out"] = f"{count} of these rows" + (f", made {len(held_out)}" if len(held_out) != count else "")
    return Split(train, held_out, facts)


def held_out_rows(recipe: Recipe, origins: Iterable[str]) -> frozenset[str]:
    """Which rows are held out of the recipe's own data: chosen by the seed, before anything is made of them.

    Args:
        recipe: with `data.eval_fraction`; where it has an `eval_path`, none are held out.
        origins: of all rows, each as often as there are records of it.

    Raises:
        ConfigError: no row would be left to learn from.
    """
    config = recipe.data
    if config.eval_path is not None or not config.eval_fraction:
        return frozenset()
    rows = list(dict.fromkeys(origins))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    count = max(1, round(config.eval_fraction * len(rows)))
    if count >= len(rows):
        raise ConfigError(f"data.eval_fraction: {config.eval_fraction} of {len(rows)} rows leaves none to learn from")
    return frozenset(rows[i] for i in order[:count])


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
    encoded, facts, _ = _read(config, want, encode, path)
    return encoded.items, facts


def _read(
    config: DataConfig,
    want: type[Record] | None,
    encode: Callable[[Loaded, DataConfig], Encoded[T]],
    path: str | None = None,
) -> tuple[Encoded[T], dict[str, str], Sequence[str]]:
    """What was made of the rows, a line about them, and which rows there were."""
    loaded = read_records(config if path is None else config.model_copy(update={"limit": None}), path, want)
    encoded = encode(loaded, config)
    origins, made = set(encoded.origins), len(encoded.items)
    rows, lost = len(origins), [rejection.origin for rejection in encoded.rejections]
    rejected = len(loaded.rejections) + len(set(lost) - origins)
    parts = sum(origin in origins for origin in lost)  # of rows that others were made of
    noted = {
        f"made {made}": made != rows,
        f"{rejected} rejected": rejected,
        f"{parts} parts of rows rejected": parts,
        f"{len(loaded.left_out)} of no use here": loaded.left_out,
    }
    told = [f"{loaded.path}: {rows} of {loaded.rows} rows ({loaded.format})", *(note for note in noted if noted[note])]
    return encoded, {"data": ", ".join(told)}, loaded.origins


def model_folder(recipe: Recipe, name: str = "model") -> str:
    """Where a run leaves its model, as a shell reads it; for the commands that a person may give next."""
    return quote(f"{recipe.output}/{name}")


def example_stream(items: list[T], recipe: Recipe, train: ExampleTrain, ranks: Ranks) -> tuple[Stream[T], int]:
    """The stream of a recipe that counts steps or epochs, and its number of steps."""
    if train.steps is not None:
        return Stream(items, train.batch_size, recipe.seed, ranks=ranks.size), train.steps
    stream = Stream(items, train.batch_size, recipe.seed, train.epochs, ranks.size)
    return stream, stream.iterations


def model_facts(recipe: Recipe, roles: Roles, weights: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """What learns, on what, where."""
    total = roles.model.num_parameters()
    learnt = sum(parameter.numel() for parameter in weights.values())
    adapter = learning_adapter(recipe, roles)
    kind = "all weights" if adapter is None else adapter.describe()
    return (
        {
            "model": f"{recipe.model.source} ({total / 1e6:.1f}M parameters, {_precision(recipe.model, roles)})",
            "learns": f"{learnt / 1e6:.2f}M parameters ({kind}), learning rate {recipe.train.learning_rate:g}",
            "device": f"{roles.device}, {torch.get_num_threads()} threads"
            if roles.device.type == "cpu"
            else str(roles.device),
        }
        | _memory_facts(recipe, roles)
        | reading_facts(roles)
    )


def _precision(model: ModelConfig, roles: Roles) -> str:
    """The type of the weights, and what the processor has to do with it."""
    name = str(roles.dtype).removeprefix("torch.")
    if model.quantize != "none":
        return f"{model.quantize}, computes in {name}"
    if fast_type(roles.dtype, roles.device) != roles.dtype:
        return f"{name}, for which this processor has no instructions: model.dtype float32 is about ten times as fast"
    own = weight_type(model, roles.location, trained=roles.adapter_config is None)
    return (
        name
        if own == roles.dtype
        else f"{name}: this processor has no instructions for the checkpoint's {str(own)[6:]}"
    )


def _memory_facts(recipe: Recipe, roles: Roles) -> dict[str, str]:
    """What is done to need less, and where asking for it does nothing."""
    facts = {"activations": "of layers computed again in backward"} if recipe.train.activation_checkpointing else {}
    waiting = [name for name, role in roles.roles.items() if role.offload]
    if waiting:
        here = roles.device.type == "cpu"
        how = (
            "asked for, but all is in main memory here: nothing moves" if here else "wait in main memory when not used"
        )
        facts["offload"] = f"{', '.join(waiting)}: {how}"
    return facts
