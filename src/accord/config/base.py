"""Sections of a recipe, and how a recipe is read: defaults < file < command-line overrides. No torch is imported here."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from accord.errors import ConfigError


class Section(BaseModel):
    """Base of all config models: unknown keys are errors, values do not change, numbers are finite, docstrings below fields
    are their help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    def refuse_idle(self, keys: Sequence[str], why: str) -> None:
        """Refuse keys that were given a value and would do nothing. Resolved recipes write all keys, so the default may stand.

        Raises:
            ValueError: names them.
        """
        fields = type(self).model_fields
        idle = [key for key in keys if getattr(self, key) != fields[key].get_default()]
        if idle:
            told = ", ".join(f"{key}: {getattr(self, key)}" for key in idle)
            back = ", ".join(f"{key}: {fields[key].get_default()}" for key in idle)
            raise ValueError(f"{told} does nothing: {why}; leave it out (the default is {back})")


S = TypeVar("S", bound=Section)


class _Twice(yaml.MarkedYAMLError):
    """A key that is given twice."""


class _OneOfEach(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error: all but the last would be dropped without a word. What looks like a
    date stays text: no option is a date, and a folder may be called like one."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name and kind of table
        first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            name = (key.tag, key.value)
            if name in lines:
                raise _Twice(
                    None, None, f"the key `{key.value}` is given twice, first in line {lines[name]}", key.start_mark
                )
            lines[name] = key.start_mark.line + 1
        return node


def load(path: str | Path) -> dict[str, Any]:
    """Read a YAML recipe into nested dicts.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        file = Path(from_home(str(path)))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not file.is_file():
        raise ConfigError(f"no recipe at {file}: give the path of a YAML file, or only `--section.key value` overrides")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _OneOfEach)
    except _Twice as error:
        assert error.problem_mark is not None
        raise ConfigError(f"{file}, line {error.problem_mark.line + 1}: {error.problem}; give it once") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{file} holds a {type(content).__name__}; a recipe is a mapping of sections such as `model:`"
        )
    return content


def from_home(path: str) -> str:
    """A path with `~` as the home folder, as in all others.

    Raises:
        ValueError: there is no such home.
    """
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise ValueError(f"{path}: the home folder it begins with is not known here; write it in full") from error


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `over` on `base`: mappings are merged key by key, anything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Turn `--train.steps 50 --model.path=./sft/model` into nested dicts; values are read as YAML.

    Of an option that is given twice the last one counts; but rewards add up to a list, as for `accord generate`.

    Raises:
        ConfigError: a word that is not an option, or an option without a value.
    """
    result: dict[str, Any] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"unexpected argument {word!r}: options look like `--train.steps 50`")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not queue or _is_option(queue[0]):
                raise ConfigError(f"option --{key} has no value: write `--{key} VALUE`")
            text = queue.pop(0)
        _insert(result, key.replace("-", "_").split("."), _scalar(text))
    return result


def _is_option(word: str) -> bool:
    return word.startswith("--") and len(word) > 2 and not word[2].isdigit()


def _scalar(text: str) -> Any:
    """YAML, and also `1e-5`, which YAML 1.1 takes for a string; what is not YAML (`a: b: c`) stays text, and so does what would
    be a mapping without braces (`Sentiment:`)."""
    try:
        value = yaml.load(text, _OneOfEach)
    except _Twice as error:
        raise ConfigError(f"{text}: {error.problem}; give it once") from error
    except yaml.YAMLError:
        return text
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _insert(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        below = tree.setdefault(key, {})
        if below is None:
            below = tree[key] = {}
        if not isinstance(below, dict):
            raise ConfigError(
                f"--{'.'.join(keys)}: `{key}` was given as {below!r} already; give its keys, or the whole"
            )
        tree = below
    if keys == ["reward"] and (
        "reward" in tree or isinstance(value, dict)
    ):  # a whole one takes the place of the file's
        value = [*_listed(tree.get("reward", [])), *_listed(value)]
    tree[keys[-1]] = value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def build(recipe: type[S], *layers: Mapping[str, Any]) -> S:
    """Validate the merged layers as a recipe.

    Raises:
        ConfigError: every fault at once, each with its key, what was given, and the nearest known key for an unknown one.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(_without_other_methods(merged, layer), _spread_lists(merged, layer))
    try:
        return recipe.model_validate(merged)
    except ValidationError as error:
        lines = [_explain(recipe, detail) for detail in error.errors()]
        raise ConfigError("the recipe cannot run:\n" + "\n".join(f"  - {line}" for line in lines)) from None


def _without_other_methods(merged: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Drop a section whose `method` the layer changes: `--adapter.method prefix` over a file with LoRA's keys begins anew."""

    def changes(key: str) -> bool:
        old, new = merged[key], layer.get(key)
        if not isinstance(old, Mapping) or not isinstance(new, Mapping) or "method" not in new:
            return False
        return bool(new["method"] != old.get("method", "lora"))

    return {key: value for key, value in merged.items() if not changes(key)}


def _spread_lists(merged: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Let `--reward.0.weight 2` change one element of a list that an earlier layer gave, or begin a list."""
    result = dict(layer)
    for key, value in layer.items():
        old = merged.get(key, [])
        if key == "reward" and isinstance(old, (str, Mapping)):
            old = [old]  # one where a list is meant, as recipes take it
        if isinstance(value, Mapping) and value and isinstance(old, list) and all(str(k).isdigit() for k in value):
            result[key] = _changed(key, old, value)
    return result


def _changed(key: str, old: list[Any], changes: Mapping[str, Any]) -> list[Any]:
    items = list(old)
    for index, change in sorted((int(place), change) for place, change in changes.items()):
        if index > len(items):
            raise ConfigError(f"--{key}.{index}: the recipe has {len(items)} entries under `{key}`, numbered from 0")
        before = items[index] if index < len(items) else {}
        if isinstance(change, Mapping) and not isinstance(before, Mapping):
            raise ConfigError(
                f"--{key}.{index}: entry {index} of `{key}` is {before!r}, which has no keys to change; write it in full, "
                f"such as `--{key} '[{{function: FILE.py:NAME, weight: 2}}]'`"
            )
        items[index : index + 1] = [merge(before, change) if isinstance(change, Mapping) else change]
    return items


def _explain(recipe: type[Section], detail: ErrorDetails) -> str:
    path, sections, others = _walk(recipe, detail["loc"])
    where = ".".join(path) or "recipe"
    if detail["type"] == "extra_forbidden":
        key = path[-1]
        owners = [tag for section in others if key in section.model_fields and (tag := tag_of(section))]
        known = [name for section in sections for name in section.model_fields]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        if owners:
            (mine,) = {tag_of(section) for section in sections}
            hint = f"it belongs to method {' and '.join(owners)}, and the method here is {mine}; known keys here: "
            return f"unknown key `{where}`: {hint}{', '.join(sorted(known))}"
        hint = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(sorted(known)) or 'none'}"
        return f"unknown key `{where}`: {hint}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in ("missing", "value_error"):
        return f"{where}: {message}" if detail["type"] == "value_error" else f"{where}: {message}; it has no default"
    given = detail["input"]
    if detail["type"] == "tuple_type" and isinstance(given, (str, int, float)):
        message = f"this is a list: write {json.dumps([given], ensure_ascii=False)}, in quotes for a shell"
    if detail["type"] == "string_type" and isinstance(given, bool):
        message += "; YAML reads yes, no, on and off as truth values, so put them in quotes"
    return f"{where}: {message} (given: {given!r})"


def tag_of(section: type[Section]) -> str | None:
    """The `method` that a section of a union is for."""
    field = section.model_fields.get("method")
    return None if field is None else str(field.default)


def _walk(recipe: type[Section], location: Iterable[Any]) -> tuple[list[str], list[type[Section]], list[type[Section]]]:
    """Follow a location of an error: its keys as a person writes them, the sections that hold its last key, and the sections
    of other methods. Unions and lists are looked through; the tag of a union's member, which pydantic puts into the
    location, chooses the member."""
    path: list[str] = []
    current: list[type[Section]] = [recipe]
    holders, others = current, [recipe][:0]
    for part in location:
        tagged = [section for section in current if tag_of(section) == part and len(current) > 1]
        if tagged:
            others = [section for section in current if section not in tagged]
            current = tagged
            continue
        path.append(str(part))
        holders = current
        fields = [section.model_fields[str(part)] for section in current if str(part) in section.model_fields]
        if fields:
            current, others = [section for field in fields for section in sections_in(field.annotation)], []
    return path, holders, others


def sections_in(annotation: Any) -> list[type[Section]]:
    """All `Section` classes inside a type such as `LoraConfig | None` or `tuple[RewardTerm, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in sections_in(argument)]


def dump(recipe: Section) -> str:
    """The resolved recipe as YAML, defaults included; `load` and `build` give the same recipe back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
