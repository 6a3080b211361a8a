"""What a run writes into the card of its model: where it comes from, how it went, the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.config import dump
from accord.model.card import Section, write_card
from accord.training.metrics import number
from accord.training.run import RunDirectory, environment, read_metrics

if TYPE_CHECKING:
    from accord.training.loop import Parts

LEFT_OUT = ("time/", "memory/", "tokens/", "iteration", "optim/")
"""Figures of the machine and not of the model."""


def write_run_card(parts: Parts, directory: RunDirectory) -> Path:
    """Write the card of the model that a run saved; returns the file."""
    recipe = parts.recipe
    facts = "\n".join(f"- {name}: {text}" for name, text in parts.facts.items() if name not in ("device", "output"))
    versions = environment()
    with_versions = ", ".join(f"{name} {versions[name]}" for name in ("accord", "torch", "transformers", "peft"))
    sections = [
        Section("Training", f"Trained by `accord {parts.kind}`.\n\n{facts}\n\nVersions: {with_versions}."),
        Section("Results of the last iteration", _table(read_metrics(directory.path))),
        Section(
            "Recipe",
            f"As `config.yaml`; `accord {parts.kind} config.yaml --output NEW` runs it again.\n\n```yaml\n{dump(recipe)}```",
        ),
    ]
    hidden = dict(_shortened(recipe.model_dump(mode="json")))
    sections = [Section(part.title, _replaced(part.text, hidden)) for part in sections]
    return write_card(
        directory.model, tags=(parts.kind,), trained_from=_replaced(recipe.model.source, hidden), sections=sections
    )


def _table(rows: list[dict[str, float]]) -> str:
    if not rows:
        return "None: the run had no iterations."
    chosen = [(name, value) for name, value in rows[-1].items() if not name.startswith(LEFT_OUT)]
    lines = [f"| `{name}` | {number(value)} |" for name, value in chosen]
    return "\n".join(["| metric | value |", "|---|---|", *lines])


def _shortened(value: Any) -> Iterator[tuple[str, str]]:
    """Every absolute path of a recipe, and its last two parts, which say enough and nothing about the machine."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _shortened(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _shortened(item)
    elif isinstance(value, str) and value.startswith(("/", "~")):
        yield value, "/".join(Path(value).parts[-2:])


def _replaced(text: str, hidden: dict[str, str]) -> str:
    for path in sorted(hidden, key=len, reverse=True):
        text = text.replace(path, hidden[path])
    return text
