"""Help for the options of a recipe, made from the config models, so that it cannot go stale."""

from __future__ import annotations

import textwrap
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from accord.config import Recipe, Section
from accord.config.base import sections_in, tag_of

WIDTH = 110


def recipe_help(command: str, recipe: type[Recipe]) -> str:
    """The page that `accord COMMAND --help` prints: usage, then each section with its keys, types, defaults and docs."""
    lines = [
        (recipe.__doc__ or "").split("\n")[0],
        "",
        f"usage: accord {command} [RECIPE.yaml] [--section.key VALUE ...] [--resume] [--dry-run] [--quiet]",
        "",
        "  --resume     go on with the run in `output` from its newest whole checkpoint",
        "  --dry-run    check the recipe, its paths and rewards and every row, print what would run, and stop; loads no weights",
        "  --quiet      print nothing but errors",
    ]
    top = [(name, field) for name, field in recipe.model_fields.items() if not sections_in(field.annotation)]
    lines += ["", "recipe", *_keys("", top)]
    for name, field in recipe.model_fields.items():
        for section in sections_in(field.annotation):
            about = textwrap.wrap(
                " ".join((section.__doc__ or "").split()), WIDTH - 2, initial_indent="  ", subsequent_indent="  "
            )
            index = ".0" if get_origin(field.annotation) is tuple else ""
            title, tag = [name], tag_of(section)
            if tag is not None:  # one of several methods
                mark = "  [default]" if tag == tag_of(type(field.default)) else ""
                title = [f"{name}, method {tag}", f"  --{name}.method {tag}{mark}"]
            lines += ["", *title, *about, *_section(f"{name}{index}.", section)]
    return "\n".join(lines)


def _section(prefix: str, section: type[Section]) -> Iterator[str]:
    plain = [(name, field) for name, field in section.model_fields.items() if not sections_in(field.annotation)]
    yield from _keys(prefix, plain)
    for name, field in section.model_fields.items():
        for below in sections_in(field.annotation):
            yield from _section(f"{prefix}{name}.", below)


def _keys(prefix: str, fields: list[tuple[str, FieldInfo]]) -> Iterator[str]:
    for name, field in fields:
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            continue  # a tag such as `type: ppo`: there is nothing to choose
        default = (
            "required"
            if field.default is PydanticUndefined and field.default_factory is None
            else _value(field.get_default(call_default_factory=True))
        )
        yield f"  --{prefix}{name} {type_name(field.annotation)}  [{default}]"
        text = " ".join((field.description or "").split())
        yield from textwrap.wrap(text, WIDTH - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def type_name(annotation: Any) -> str:
    """A type as a person would write it: `auto|float32`, `int|null`, `list of text`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return "|".join(type_name(argument) for argument in arguments)
    if origin is tuple:
        inner = [type_name(argument) for argument in arguments if argument is not ...]
        return f"list of {inner[0]}" if ... in arguments else f"[{', '.join(inner)}]"
    if origin is dict:
        return "{KEY: VALUE}"
    names = {str: "TEXT", int: "INT", float: "NUMBER", bool: "true|false", type(None): "null"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))
