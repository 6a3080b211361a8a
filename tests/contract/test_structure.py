"""The house: who may import whom, how long things may be, what must be documented, what must not be said."""

from __future__ import annotations

import ast

import pytest

from accord.algorithms import ALGORITHMS
from contract.sources import ROOT, Function, modules, own_imports, public_definitions

ORDER = (
    "errors",
    "types",
    "machine",
    "config",
    "packing",
    "layout",
    "batch",
    "ops",
    "losses",
    "data",
    "model",
    "rewards",
    "rollout",
    "algorithms",
    "training",
    "cluster",
    "swarm",
    "forecast",
    "report",
    "label",
    "recipes",
    "cli",
)
"""A folder imports only from folders above it, or from itself (DESIGN, section 2)."""
TOP = ("__init__.py", "__main__.py")
"""The package's own face, which may import anything."""
MAX_LINES, MAX_FUNCTION = 400, 80


def folder_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def test_every_folder_has_its_place():
    assert {folder_of(path) for path in modules() if path not in TOP} <= set(ORDER)


def test_no_import_upward():
    wrong = [
        f"{path}:{line} imports {target}"
        for path, tree in modules().items()
        if path not in TOP
        for line, target in own_imports(path, tree)
        if ORDER.index(target.split(".")[1]) > ORDER.index(folder_of(path))
    ]
    assert wrong == []


def test_no_module_imports_the_package_itself():
    """`import accord` inside the package would hide what is needed, and from whom."""
    inside = {path: tree for path, tree in modules().items() if path not in TOP}
    assert [
        path for path, tree in inside.items() if "accord" in {target for _, target in own_imports(path, tree)}
    ] == []


def test_files_are_short():
    lines = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}


def test_functions_are_short():
    long = [
        f"{path}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1}"
        for path, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, Function) and node.end_lineno - node.lineno + 1 > MAX_FUNCTION
    ]
    assert long == []


def test_algorithms_are_small():
    """One small file each; a loss that is hard to find is hard to check."""
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in modules() if path.startswith("algorithms/")}
    assert {path: count for path, count in lines.items() if count > 230} == {}


def test_every_module_says_what_it_is():
    assert [path for path, tree in modules().items() if not ast.get_docstring(tree)] == []


def _methods(node: ast.ClassDef) -> dict[str, Function]:
    return {member.name: member for member in node.body if isinstance(member, Function)}


def _protocols(tree: ast.Module) -> list[dict[str, Function]]:
    """Methods of each protocol of a module."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return [_methods(node) for node in classes if any(ast.unparse(b).startswith("Protocol") for b in node.bases)]


def _is_told_elsewhere(node: Function, owner: ast.ClassDef | None, protocols: list[dict[str, Function]]) -> bool:
    """A stub of a protocol, whose own docstring tells; or a method by which a class keeps a documented protocol."""
    if owner is None:
        return False
    for methods in protocols:
        if methods == _methods(owner):
            return ast.unparse(node.body[-1]) == "..."
        promised = methods.get(node.name)
        if methods.keys() <= _methods(owner).keys() and promised is not None and ast.get_docstring(promised):
            return True
    return False


def test_everything_public_is_documented():
    missing = [
        f"{path}:{node.lineno} {name}"
        for path, tree in modules().items()
        for name, node, owner in public_definitions(tree)
        if not ast.get_docstring(node)
        if isinstance(node, ast.ClassDef) or not _is_told_elsewhere(node, owner, _protocols(tree))
    ]
    assert missing == []


def test_everything_public_is_annotated():
    missing = []
    for path, tree in modules().items():
        for name, node, owner in public_definitions(tree):
            if isinstance(node, ast.ClassDef):
                continue
            arguments = [
                *node.args.posonlyargs,
                *node.args.args,
                *node.args.kwonlyargs,
                node.args.vararg,
                node.args.kwarg,
            ]
            static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
            arguments = [a for a in arguments if a is not None][1 if owner is not None and not static else 0 :]
            bare = [a.arg for a in arguments if a.annotation is None]
            if bare or node.returns is None:
                missing.append(f"{path}:{node.lineno} {name}: {', '.join(bare) or 'its result'}")
    assert missing == []


KINDS_ALLOWED = {"model/device.py", "model/attention.py", "training/parallel.py", "training/loop.py"}
"""The device is data: these alone may know that there are kinds of it."""


def _kind_of_device(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
        return node.attr in ("cuda", "mps", "xpu", "accelerator")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("cuda", "mps"):
        return True
    return (
        isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in ("cuda", "mps", "xpu", "nccl")
    )


def test_kinds_of_device_are_named_in_few_places():
    named = [
        f"{path}:{node.lineno}"
        for path, tree in modules().items()
        if path not in KINDS_ALLOWED
        for node in ast.walk(tree)
        if _kind_of_device(node)
    ]
    assert named == []


BANNED = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}


def test_no_pickles_are_read_or_written():
    found = []
    for path, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [f"{path}:{node.lineno} {a.name}" for a in node.names if a.name.split(".")[0] in BANNED]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in BANNED:
                found.append(f"{path}:{node.lineno} {node.module}")
            elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
                found.append(f"{path}:{node.lineno} {ast.unparse(node)}")
    assert found == []


def test_no_drawer_for_odds_and_ends():
    assert [
        path for path in modules() if path.rsplit("/", 1)[-1] in ("utils.py", "helpers.py", "common.py", "misc.py")
    ] == []


def test_algorithms_share_functions_and_not_ancestors():
    """No algorithm inherits from another, and the loop names none."""
    names = {algorithm.__name__ for algorithm in ALGORITHMS.values()} | {"ProcessRewardModelling"}
    for path in [path for path in modules() if path.startswith("algorithms/")]:
        bases = {
            ast.unparse(base) for node in modules()[path].body if isinstance(node, ast.ClassDef) for base in node.bases
        }
        assert not bases & names, path
    loop = modules()["training/loop.py"]
    assert not names & {node.id for node in ast.walk(loop) if isinstance(node, ast.Name)}
    constants = {node.value for node in ast.walk(loop) if isinstance(node, ast.Constant)}
    assert not set(ALGORITHMS) & constants


def _losses() -> list[tuple[str, Function]]:
    return [
        (path, node)
        for path, tree in modules().items()
        if path.startswith("losses/")
        for node in tree.body
        if isinstance(node, Function) and not node.name.startswith("_")
    ]


@pytest.mark.parametrize(("path", "node"), _losses(), ids=[node.name for _, node in _losses()])
def test_losses_keep_the_rules_of_the_house(path, node):
    """Keyword-only; no mean (the denominator is an argument), no `.item()`, no collective, no config object."""
    assert not node.args.args and not node.args.posonlyargs
    called = {n.func.attr for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
    assert not called & {"item", "mean", "all_reduce", "tolist", "cpu"}
    assert not any(target.startswith("accord.config") for _, target in own_imports(path, modules()[path]))
