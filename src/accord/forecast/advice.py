"""Changes of a recipe that make it fit, cheapest first; each is found by forecasting the changed recipe."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from accord.config import Recipe, RolloutRecipe, build, merge, parse_overrides
from accord.config.rollout import MOST
from accord.errors import AccordError
from accord.forecast.devices import Device
from accord.forecast.memory import Forecast, forecast
from accord.forecast.models import find_model

PATIENCE = 1.0
"""Seconds that the search for combinations may take."""
WANTED = 3
HALF = "half of the layers"
"""Stands for a number that depends on the model."""
TOGETHER = 3
"""Most changes in one piece of advice."""
MANY = 6
"""Most changes where fewer do not do."""
SLACK = 1.1
"""By how much a sum of savings may miss before the combination is not even tried."""


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

    Single changes are forecast, each by itself. What two or three save together is taken for the sum of what they save alone,
    phase by phase; those that may fit by that reckoning are forecast, the cheapest first, so what is returned does fit.

    Returns:
        The changes, and, if there is none, the one with the least peak that was found, which does not fit either.

    Raises:
        ModelError: see `forecast`.
    """
    now = forecast(recipe, device, longest)
    tried = [one for one in (_tried(recipe, device, change, longest) for change in candidates(recipe)) if one]
    tried.sort(key=lambda one: one.change.cost)
    useful: list[_Tried] = []
    for one in tried:  # a dearer change of the same key that saves no more is of no use
        same = [other for other in useful if _keys(other.change) == _keys(one.change)]
        if any(one.told.total(p) < now.total(p) for p in now.phases) and not any(
            all(other.told.total(p) <= one.told.total(p) for p in now.phases) for other in same
        ):
            useful.append(one)
    fitting: list[Change] = []
    best = min((one.change for one in useful), key=lambda c: c.peak, default=None)
    until = time.monotonic() + PATIENCE
    for parts in _combinations(useful, now, device):
        if len(fitting) >= WANTED or time.monotonic() > until:
            break
        joined = _joined([part.change for part in parts])
        if any(_keys(other) <= _keys(joined) for other in fitting):
            continue
        made = parts[0] if len(parts) == 1 else _tried(recipe, device, joined, longest)
        if made is None:
            continue
        best = made.change if best is None or made.change.peak < best.peak else best
        if made.told.fits:
            fitting.append(made.change)
    if len(fitting) < WANTED:
        more = _many(recipe, device, longest, useful, now, until)
        fitting += [change for change in more if not any(_keys(other) <= _keys(change) for other in fitting)]
        fitting = sorted(fitting, key=lambda change: change.cost)[:WANTED]
    return fitting, None if fitting else best


def _many(
    recipe: Recipe, device: Device, longest: int | None, useful: Sequence[_Tried], now: Forecast, until: float
) -> list[Change]:
    """Combinations of more changes: each time the one that saves most for its cost, until all phases fit. For a second and a
    third the dearest change of those found is left out."""
    fitting: list[Change] = []
    without: set[tuple[tuple[str, str], ...]] = set()
    while len(fitting) < WANTED and (time.monotonic() < until + PATIENCE or not fitting):
        parts = _greedy([one for one in useful if one.change.options not in without], now, device.bytes)
        if not parts:
            break
        made = _tried(recipe, device, _joined([part.change for part in parts]), longest)
        if made is not None and made.told.fits:
            fitting.append(made.change)
        without.add(max(parts, key=lambda part: part.change.cost).change.options)
    return sorted(fitting, key=lambda change: change.cost)


def _greedy(useful: Sequence[_Tried], now: Forecast, room: int) -> list[_Tried]:
    """Changes that together should fit; empty if they do not."""
    left = {phase: now.total(phase) for phase in now.phases}
    parts: list[_Tried] = []
    while max(left.values()) > room:

        def worth(one: _Tried) -> float:
            over = {phase: count - room for phase, count in left.items() if count > room}
            return sum(min(now.total(p) - one.told.total(p), more) for p, more in over.items()) / one.change.cost

        taken = {key for part in parts for key in _keys(part.change)}
        free = [one for one in useful if not _keys(one.change) & taken]
        best = max(free, key=worth, default=None)
        if best is None or worth(best) <= 0 or len(parts) >= MANY:
            return []
        parts.append(best)
        for phase in left:
            left[phase] -= now.total(phase) - best.told.total(phase)
    return parts


@dataclass(frozen=True)
class _Tried:
    change: Change
    told: Forecast


def _combinations(useful: Sequence[_Tried], now: Forecast, device: Device) -> list[tuple[_Tried, ...]]:
    """Those of up to `TOGETHER` changes that may fit, cheapest first; if none may, those that save most."""
    found: list[tuple[float, int, tuple[_Tried, ...]]] = []
    for count in range(1, TOGETHER + 1):
        for parts in combinations(useful, count):
            keys = [key for part in parts for key in _keys(part.change)]
            if len(set(keys)) < len(keys):
                continue
            left = max(
                now.total(phase) - sum(now.total(phase) - part.told.total(phase) for part in parts)
                for phase in now.phases
            )
            found.append((sum(part.change.cost for part in parts), left, parts))
    fits = sorted((entry for entry in found if entry[1] <= device.bytes * SLACK), key=lambda entry: entry[0])
    chosen = fits or sorted(found, key=lambda entry: entry[1])[:3]
    return [parts for _, _, parts in chosen]


def _joined(changes: Sequence[Change]) -> Change:
    prices = "; ".join(dict.fromkeys(change.price for change in changes))
    return Change(tuple(o for c in changes for o in c.options), sum(c.cost for c in changes), prices)


def candidates(recipe: Recipe) -> Iterator[Change]:
    """Single changes that may save memory; not all can be made, and not all help."""
    train, model, placement = type(recipe.train).model_fields, type(recipe.model).model_fields, recipe.placement
    if "allocator" in type(placement).model_fields and placement.allocator != "lean":
        yield _one("placement.allocator", "lean", 2.1, "a third of the speed on CPU")
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
    most = recipe.rollout.max_sequences
    rows = min(MOST if most == "auto" else most, recipe.train.batch_size)
    for halvings in range(1, 5):
        if rows >> halvings >= 1:
            yield _one("rollout.max_sequences", rows >> halvings, 0.8 * halvings, "speed of sampling")
    critic: Any = getattr(recipe, "critic", None)
    if critic is not None and critic.source == "model":
        source = "policy_trunk" if recipe.adapter is None else "adapter"
        yield Change((("critic.source", source), ("critic.path", "null")), 4.5, "a critic of its own")
    if recipe.adapter is None and recipe.reference.source == "start":
        options = (("reference.source", "shared_layers"), ("reference.k", HALF))
        yield Change(options, 4.2, "learning in the lower half of the layers")


def _one(key: str, value: object, cost: float, price: str) -> Change:
    return Change(((key, str(value)),), cost, price)


def _keys(change: Change) -> set[str]:
    return {key for key, _ in change.options}


def _tried(recipe: Recipe, device: Device, change: Change, longest: int | None) -> _Tried | None:
    """The change with the forecast of the changed recipe; `None` if it cannot be made."""
    options = _filled(recipe, change)
    try:
        told = forecast(changed(recipe, options), device, longest)
    except AccordError:
        return None
    return _Tried(Change(options, change.cost, change.price, told.peak), told)


def _filled(recipe: Recipe, change: Change) -> tuple[tuple[str, str], ...]:
    """With half the number of layers where it is wanted."""
    half = max(len(find_model(recipe.model.source).shape.layers) // 2, 1)
    return tuple((key, str(half) if value == HALF else value) for key, value in change.options)


def changed(recipe: Recipe, options: Sequence[tuple[str, str]]) -> Recipe:
    """The recipe with options on top, as the command line would read them.

    Raises:
        ConfigError: they do not go together.
    """
    layer: Mapping[str, Any] = recipe.model_dump(mode="json")
    words = [word for key, value in options for word in (f"--{key}", value)]
    return build(type(recipe), merge(layer, parse_overrides(words)))
