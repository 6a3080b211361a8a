"""The package as syntax trees: what the contract tests read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import accord

ROOT = Path(accord.__file__).parent
REPOSITORY = Path(__file__).parents[2]


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its path below `accord/`, such as `ops/kl.py`."""
    files = sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in files}


Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, Function | ast.ClassDef, ast.ClassDef | None]]:
    """Public functions and classes of a module, and public methods of those classes, each with its class."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node, None
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, Function) and not member.name.startswith("_"):
                        yield f"{node.name}.{member.name}", member, node


def own_imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, module) for every import of the package's own modules, those inside functions and `if` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "accord")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            if node.module == "accord":
                yield from ((node.lineno, f"accord.{alias.name}") for alias in node.names)
            elif node.module and node.module.startswith("accord."):
                yield node.lineno, node.module
