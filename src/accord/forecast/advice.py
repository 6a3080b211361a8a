"""Changes of a recipe that make it fit, cheapest first; each is found by forecasting the changed recipe."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from accord.config import Recipe, RolloutRecipe, build, merge
from accord.errors import AccordError
from accord.forecast.devices import Device
from accord.forecast.memory import Forecast, forecast

PATIENCE = 1.0
"""Seconds that the search for combinations may take."""
WANTED = 3


@dataclass(frozen=True)
class Change:
    """One or more options, and what they cost."""

    options: tuple[tuple[str, str], ...]
    """Key and value, as on the command line."""
    cost: float
    """Lost speed and quality, in no unit: changes are ordered by it."""
    price: str
    """What is lost, in words."""
    peak: int = 0
    """Bytes of the changed recipe."""

    @property
    def words(self) -> str:
        """As they are written on the command line."""
        return " ".join(f"--{key} {value}" for key, value in self.options)


def advise(recipe: Recipe, device: Device, longest: int | None = None) -> tuple[list[Change], Change | None]:
    """The three cheapest changes that make a recipe fit.

    Returns:
        The changes, and, if there is none, the combination with the least peak that was found, which does not fit either.

    Raises:
        ModelError: see `forecast`.
    """
    singles = [one for one in (_tried(recipe, device, change, longest) for change in candidates(recipe)) if one]
    fitting: list[Change] = []
    for change in sorted(singles, key=lambda c: c.cost):
        # Of several values of one key the cheapest that fits is enough.
        if change.peak <= device.bytes and not any(_keys(change) == _keys(other) for other in fitting):
            fitting.append(change)
    best = min(singles, key=lambda c: c.peak, default=None)
    until = time.monotonic() + PATIENCE
    for size in (2, 3, 4):
        if len(fitting) >= WANTED or time.monotonic() > until:
            break
        for change in sorted(_combined(singles, size), key=lambda c: c.cost):
            if time.monotonic() > until or len(fitting) >= WANTED:
                break
            if any(set(other.options) <= set(change.options) for other in fitting):
                continue
            made = _tried(recipe, device, change, longest)
            if made is not None:
                best = made if best is None or made.peak < best.peak else best
                if made.peak <= device.bytes:
                    fitting.append(made)
    fitting.sort(key=lambda c: c.cost)
    return fitting[:WANTED], None if fitting else best


def candidates(recipe: Recipe) -> Iterator[Change]:
    """Single changes that may save memory; not all can be made, and not all help."""
    train, model, placement = type(recipe.train).model_fields, type(recipe.model).model_fields, recipe.placement
    if "allocator" in type(placement).model_fields and placement.allocator != "lean":
        yield _one("placement.allocator", "lean", 1.0, "some speed on CPU")
    tokens = recipe.train.micro_batch_tokens
    for halvings in range(1, 6):
        if tokens >> halvings >= 64:
            yield _one("train.micro_batch_tokens", tokens >> halvings, 0.3 * halvings, "a little speed")
    if "activation_checkpointing" in train and not getattr(recipe.train, "activation_checkpointing", False):
        yield _one("train.activation_checkpointing", "true", 2.0, "about a quarter of the update's speed")
    if "offload" in type(getattr(recipe, "reference", None) or recipe).model_fields:
        yield _one("reference.offload", "true", 1.5, "time to move weights")
    if isinstance(recipe, RolloutRecipe):
        yield from _of_rollouts(recipe)
    if recipe.adapter is None:
        yield _one("adapter.method", "lora", 4.0, "some of what full fine-tuning can learn")
        yield _one("train.optimizer", "adamw8bit", 2.5, "speed on CPU, precision of the optimiser's state")
        if recipe.model.dtype in ("auto", "float32"):
            yield _one("model.dtype", "bfloat16", 6.0, "small steps, which vanish in 8 bits of mantissa")
    else:
        if "quantize" in model and getattr(recipe.model, "quantize", "none") == "none":
            yield _one("model.quantize", "int8", 3.0, "speed; hardly any quality")
            yield _one("model.quantize", "nf4", 3.5, "speed and a little quality")
        if recipe.model.dtype in ("auto", "float32"):
            yield _one("model.dtype", "bfloat16", 2.2, "precision of a float32 base")
    for halvings in range(1, 4):
        length = recipe.data.max_tokens >> halvings
        if length >= 128:
            yield _one("data.max_tokens", length, 5.0 + halvings, "rows (prompts) that are longer")


def _of_rollouts(recipe: RolloutRecipe) -> Iterator[Change]:
    rows = min(recipe.rollout.max_sequences, recipe.train.batch_size)
    for halvings in range(1, 5):
        if rows >> halvings >= 1:
            yield _one("rollout.max_sequences", rows >> halvings, 0.8 * halvings, "speed of sampling")
    critic: Any = getattr(recipe, "critic", None)
    if critic is not None and critic.source == "model":
        source = "policy_trunk" if recipe.adapter is None else "adapter"
        yield _one("critic", f"{{source: {source}}}", 4.5, "a critic of its own")
    if recipe.adapter is None and recipe.reference.source == "start":
        yield _one("reference", "{source: shared_layers, k: LAYERS}", 4.2, "learning in the lower half of the layers")


def _one(key: str, value: object, cost: float, price: str) -> Change:
    return Change(((key, str(value)),), cost, price)


def _keys(change: Change) -> set[str]:
    return {key for key, _ in change.options}


def _combined(singles: Sequence[Change], size: int) -> Iterator[Change]:
    """Combinations of changes of different keys; `size` of them."""
    useful = sorted(singles, key=lambda c: c.cost)
    for parts in combinations(useful, size):
        keys = [key for part in parts for key, _ in part.options]
        if len(set(keys)) == len(keys):
            prices = dict.fromkeys(part.price for part in parts)
            yield Change(tuple(o for part in parts for o in part.options), sum(p.cost for p in parts), "; ".join(prices))


def _tried(recipe: Recipe, device: Device, change: Change, longest: int | None) -> Change | None:
    """The change with the peak of the changed recipe; `None` if it cannot be made."""
    options = _filled(recipe, change)
    try:
        made: Forecast = forecast(changed(recipe, options), device, longest)
    except AccordError:
        return None
    return Change(options, change.cost, change.price, made.peak)


def _filled(recipe: Recipe, change: Change) -> tuple[tuple[str, str], ...]:
    """With half the number of layers where it is wanted."""
    from accord.forecast.models import find_model

    if not any("LAYERS" in value for _, value in change.options):
        return change.options
    half = max(len(find_model(recipe.model.source).shape.layers) // 2, 1)
    return tuple((key, value.replace("LAYERS", str(half))) for key, value in change.options)


def changed(recipe: Recipe, options: Sequence[tuple[str, str]]) -> Recipe:
    """The recipe with options on top, as the command line would read them.

    Raises:
        ConfigError: they do not go together.
    """
    from accord.config import parse_overrides

    layer: Mapping[str, Any] = recipe.model_dump(mode="json")
    words = [word for key, value in options for word in (f"--{key}", value)]
    return build(type(recipe), merge(layer, parse_overrides(words)))
