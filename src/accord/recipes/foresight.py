"""The forecast of a run on the device that it will use: printed before, compared with what was measured after."""

from __future__ import annotations

import dataclasses
import os

from accord.config import Recipe
from accord.errors import AccordError
from accord.forecast.advice import advise
from accord.forecast.devices import Device
from accord.forecast.memory import Forecast, forecast
from accord.forecast.table import short, size
from accord.model.device import choose_device, memory_bytes
from accord.training.loop import Parts


def device_of(recipe: Recipe) -> Device:
    """The device that a run of the recipe would use here; under torchrun one of as many as there are ranks, and on CPU each
    rank's part of this machine's memory.

    Raises:
        ConfigError: `placement.device` does not exist here.
    """
    device = choose_device(recipe.placement)
    cpu = device.type == "cpu"
    ranks, here = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if recipe.placement.type != "torchrun":
        ranks = here = 1
    return Device("cpu" if cpu else str(device), memory_bytes(device) // (here if cpu else 1), count=ranks, cpu=cpu)


def foresee(recipe: Recipe, longest: int | None = None) -> Forecast | str:
    """The forecast on this machine, or why there is none: a run does not fail for want of it."""
    try:
        return forecast(recipe, device_of(recipe), longest)
    except AccordError as error:
        return f"no forecast: {error}"


def lines(recipe: Recipe) -> list[str]:
    """A few lines for a dry run; with the cheapest change, if the recipe does not fit."""
    told = foresee(recipe)
    if isinstance(told, str):
        return [told]
    return [*short(told), *_change(recipe, told)]


def _change(recipe: Recipe, told: Forecast) -> list[str]:
    if told.fits:
        return []
    changes, _ = advise(recipe, told.device)
    return [f"it would fit with {change.words} (peak {size(change.peak)})" for change in changes[:1]]


def with_forecast(parts: Parts) -> Parts:
    """The parts of a run, now that its rows are known, with the forecast in the header, and a note if it does not fit."""
    told = foresee(parts.recipe, parts.longest)
    if isinstance(told, str):
        return dataclasses.replace(parts, facts={**parts.facts, "memory": told})
    says, *rest = short(told)
    notes = [] if told.fits else [f"memory: {says}", *_change(parts.recipe, told)]
    return dataclasses.replace(
        parts,
        facts={**parts.facts, "memory": f"{says}; {rest[0]}" if rest else says},
        notes=(*parts.notes, *notes),
        forecast_bytes=told.peak,
    )
