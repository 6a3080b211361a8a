"""Going on from a saved adapter: it keeps its shape, and what the recipe says otherwise is told to have no effect."""

from __future__ import annotations

from typing import Any

from accord.config import AdapterConfig, LoraConfig, Recipe
from accord.model.methods import kept_options, leaves_out_layers
from accord.model.roles import START, Roles

EVERY_LAYER = "all-linear"


def learning_adapter(recipe: Recipe, roles: Roles) -> AdapterConfig | None:
    """The section of the adapter that learns: the recipe's, or that of the saved one that the run goes on from."""
    if recipe.adapter is None or roles.location.adapter is None:
        return recipe.adapter
    return recipe.adapter.model_copy(update=kept_options(roles.adapters.config(START)))


def method_option(adapter: AdapterConfig | None) -> str:
    """What a command that goes on from such an adapter needs besides its folder; empty for the default method, and for a whole
    model."""
    return "" if adapter is None or isinstance(adapter, LoraConfig) else f" --adapter.method {adapter.method}"


def ignored_options(recipe: Recipe, roles: Roles) -> list[str]:
    """A note for each option that the recipe gives for its adapter and that differs from the saved one.

    Args:
        recipe: its adapter's keys that were not given say nothing.
        roles: opened with it.
    """
    folder = roles.location.adapter
    if recipe.adapter is None or folder is None:
        return []
    kept = kept_options(roles.adapters.config(START))
    asked = {key: getattr(recipe.adapter, key) for key in type(recipe.adapter).model_fields if key in kept}
    return [
        f"adapter.{key}: {_shown(value)} has no effect: training goes on from {folder}, whose {key} is {_shown(kept[key])}"
        for key, value in asked.items()
        if key in recipe.adapter.model_fields_set and _differs(key, value, kept[key], roles)
    ]


def _differs(key: str, value: Any, kept: Any, roles: Roles) -> bool:
    if value is None:  # what the architecture or the saved adapter says
        return False
    if key == "targets" and value == EVERY_LAYER:
        return leaves_out_layers(roles.model)
    if isinstance(value, tuple) and isinstance(kept, tuple):
        return set(value) != set(kept)
    return bool(value != kept)


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
