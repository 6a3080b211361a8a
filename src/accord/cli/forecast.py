"""`accord forecast`: what a recipe needs of a device, before it runs."""

from __future__ import annotations

import json
from typing import Any

from accord.config import RECIPES, Recipe, build, load, merge, parse_overrides
from accord.errors import ConfigError

HELP = """usage: accord forecast RECIPE.yaml [--section.key VALUE ...] [--device DEVICE ...] [--json]
       accord forecast COMMAND [RECIPE.yaml] [--section.key VALUE ...] [--device DEVICE ...] [--json]

What a recipe needs of each device, by role and phase, whether it fits, and the three cheapest changes that make it fit.
No weight is read and nothing is fetched: a model's config.json has to be here, or in the hub's cache.

  --device DEVICE   24GiB, A100-80GB, 8xA100-80GB, cpu (this machine), cpu:16GiB; several may be given  [cpu]
  --longest N       tokens of the longest row (prompt, for rollouts), if that is less than data.max_tokens allows
  --json            for machines; sizes in bytes

COMMAND is that of the training run (sft, ppo, ...); without it the recipe's algorithm.type says what it is. Options are
the recipe's own: `accord COMMAND --help` lists them."""


def run(command: str, words: list[str]) -> int:
    """Run the command; see `accord.cli.main`."""
    if not words or "--help" in words or "-h" in words:
        print(HELP)
        return 0
    as_json = "--json" in words
    words, devices = _taken([word for word in words if word != "--json"], "--device")
    words, lengths = _taken(words, "--longest")
    recipe = _recipe(words)
    from accord.forecast.advice import advise
    from accord.forecast.devices import parse_device
    from accord.forecast.memory import forecast
    from accord.forecast.table import as_json as plain
    from accord.forecast.table import render

    longest = _length(lengths)
    parsed = [parse_device(device) for device in devices or ["cpu"]]
    results: list[dict[str, Any]] = []
    for number, device in enumerate(parsed):
        told = forecast(recipe, device, longest)
        changes, least = ([], None) if told.fits else advise(recipe, device, longest)
        if as_json:
            results.append(plain(told, changes, least))
            continue
        from rich.console import Console

        if number:
            print()
        render(told, changes, least, Console(highlight=False))
    if as_json:
        print(json.dumps(results[0] if len(results) == 1 else results, indent=1))
    return 0


def _taken(words: list[str], option: str) -> tuple[list[str], list[str]]:
    """The words without an option, and its values: `--device A B`, `--device=A`."""
    rest: list[str] = []
    values: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word.startswith(f"{option}="):
            values.append(word.partition("=")[2])
            continue
        if word != option:
            rest.append(word)
            continue
        if not queue or queue[0].startswith("--"):
            raise ConfigError(f"{option} needs a value, such as {option} {'24GiB' if option == '--device' else '256'}")
        while queue and not queue[0].startswith("--"):
            values.append(queue.pop(0))
    return rest, values


def _length(values: list[str]) -> int | None:
    if not values:
        return None
    if len(values) > 1 or not values[0].isdigit() or int(values[0]) < 1:
        raise ConfigError(f"--longest is one number of tokens, 1 or more (given: {' '.join(values)})")
    return int(values[0])


def _recipe(words: list[str]) -> Recipe:
    """The recipe of the words, of the kind that they or the file name.

    Raises:
        ConfigError: nothing says which kind, or the recipe cannot run.
    """
    kind = None
    if words and words[0].replace("-", "_") in RECIPES:
        kind, words = words[0].replace("-", "_"), words[1:]
    file: dict[str, Any] = {}
    if words and not words[0].startswith("--"):
        file, words = load(words[0]), words[1:]
    options = parse_overrides(words)
    named = merge(file, options).get("algorithm")
    told = named.get("type") if isinstance(named, dict) else None
    if kind is not None and told not in (None, kind):
        raise ConfigError(f"the recipe is for `accord {told}` (algorithm.type), and the command is `{kind}`")
    kind = kind or told
    if kind not in RECIPES:
        raise ConfigError(
            f"which recipe is this? Begin with a command (accord forecast ppo ...), or give algorithm.type in the file: one of "
            f"{', '.join(RECIPES)} (given: {kind!r})"
        )
    return build(RECIPES[kind], {"output": "runs/forecast"}, file, options)
