"""Rewards that are Python functions of one's own."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from accord.errors import ConfigError, RewardError
from accord.rewards.protocol import Score, checked_rewards, describe
from accord.types import Rollout

FAULTS = (Exception, SystemExit, asyncio.CancelledError)
"""What code of the user's may raise; only Ctrl-C is not. `sys.exit(0)` in a reward must not look like a run's good end."""


class FunctionReward:
    """Calls `f(prompts, responses, **columns)`, sync or async.

    `columns` are those of the data's rows, each a list as long as `prompts`; a function that does not name them, and takes no
    `**columns`, gets only those it names. One that names `response_ids` gets the token ids of each response, and may give a list
    with a score for each token instead of a number.

    Args:
        function: the function.
        label: its name in metrics and errors.
        timeout: seconds that one call of an async function may take. A plain function cannot be interrupted.

    Raises:
        ConfigError: the function cannot be called like that.
    """

    def __init__(self, function: Callable[..., Any], label: str, timeout: float = 600.0) -> None:
        self.function = function
        self.label = label
        self.timeout = timeout
        self._names, self._needed, reads_tokens = _columns(function, label)
        self.reads_tokens = reads_tokens
        """Whether it gets the token ids of each response."""
        self._promised: tuple[str, ...] = ()

    def check_columns(self, names: Collection[str]) -> None:
        """Refuse data that lacks a column the function needs, or has one that is called like an argument of its own.

        From now on a needed column comes along also with responses none of which has it.

        Raises:
            ConfigError: names the column.
        """
        lacking = [name for name in self._needed if name not in names]
        if lacking:
            raise ConfigError(
                f"reward {self.label} cannot be called without {lacking[0]!r}, and no row of the data has such a column; columns "
                f"beside the prompt: {', '.join(sorted(names)) or 'none'}. Rename one with data.columns, or give the parameter "
                "a default"
            )
        self._promised = self._needed
        taken = sorted({"prompts", "responses"}.intersection(names)) if self._names is None else []
        if taken:
            raise ConfigError(
                f"reward {self.label} takes all columns of the data (**columns), and one is called {taken[0]!r} like its own "
                f"argument: rename it with data.columns, such as '{{{taken[0]}: other_{taken[0]}}}', or name the columns "
                "that the function reads"
            )

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score for each rollout; see `RewardSource.score`."""
        keys = sorted({key for rollout in rollouts for key in rollout.columns}.union(self._promised))
        columns = {
            key: [rollout.columns.get(key) for rollout in rollouts]
            for key in keys
            if self._names is None or key in self._names
        }
        prompts = [rollout.prompt_text for rollout in rollouts]
        responses = [rollout.response_text for rollout in rollouts]
        try:
            if self.reads_tokens:
                columns["response_ids"] = [rollout.response_ids for rollout in rollouts]
            scores = self.function(prompts=prompts, responses=responses, **columns)
            if inspect.iscoroutine(scores):
                scores = _finish(_within(scores, self.timeout))
        except _LateError:
            raise RewardError(
                f"reward {self.label} did not return within {self.timeout:g} s (`timeout` of this reward), asked for "
                f"{len(rollouts)} responses, the first: {describe(0, rollouts[0])}. What it waits for may be down; give each "
                "request in it a deadline of its own"
            ) from None
        except FAULTS as error:  # the user's to read, with the place it came from
            file = getattr(getattr(inspect.unwrap(self.function), "__code__", None), "co_filename", None)
            raise RewardError(
                f"reward {self.label} raised {type(error).__name__}: {error}\n  at {_place(error, file)}\n"
                f"  on {len(rollouts)} responses, the first: {describe(0, rollouts[0])}"
            ) from error
        return checked_rewards(self.label, scores, rollouts)


class _LateError(Exception):
    """The deadline that Accord set has passed; a TimeoutError would also be what the function raises itself."""


async def _within(coroutine: Coroutine[Any, Any, Any], seconds: float) -> Any:
    try:
        async with asyncio.timeout(seconds) as scope:
            return await coroutine
    except TimeoutError:
        if scope.expired():
            raise _LateError from None
        raise


def _finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, also where an event loop runs already (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def _place(error: BaseException, file: str | None = None) -> str:
    """The last line of a user's file that ran before an error; where it was raised if no file is given or none ran."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
    return f"{frame.filename}:{frame.lineno}"


OWN = ("prompts", "responses")
"""Arguments of every function."""


def _columns(function: Callable[..., Any], label: str) -> tuple[set[str] | None, tuple[str, ...], bool]:
    """Names of columns that a function takes, `None` for any; those without which it cannot be called; whether it names
    `response_ids`.

    Of a wrapper that passes on what it gets, the function within tells what is welcome; but what that needs the wrapper may give,
    so that only what the wrapper itself needs is needed.
    """
    try:
        called, told = (inspect.signature(function, follow_wrapped=follow).parameters for follow in (False, True))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"reward {label}: its parameters cannot be read ({error}): write a `def` around it") from None
    by_place = [p for p in called.values() if p.kind is p.POSITIONAL_ONLY and (p.default is p.empty or p.name in OWN)]
    told = told if _takes_any(called) else called
    missing = [name for name in OWN if name not in _keywords(told) and not _takes_any(told)]
    if missing or by_place:
        only = f" ({by_place[0].name!r} by its place alone)" if by_place else ""
        raise ConfigError(
            f"reward {label} takes ({', '.join(told)}){only}, but it is called with the keywords `prompts` and `responses`: "
            "write `def reward(prompts, responses, **columns)`"
        )
    named = {**_keywords(told), **_keywords(called)}
    own = {*OWN, "response_ids"}
    needed = tuple(name for name, p in _keywords(called).items() if p.default is p.empty and name not in own)
    return None if _takes_any(told) else set(named) - own, needed, "response_ids" in named


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _keywords(parameters: Mapping[str, inspect.Parameter]) -> dict[str, inspect.Parameter]:
    """Those that can be given by name."""
    return {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def load_function(reference: str) -> Callable[..., Any]:
    """The function that `FILE.py:NAME` or `package.module:NAME` names.

    Raises:
        ConfigError: no such file, module or function; names what the file does define.
    """
    source, _, name = reference.rpartition(":")
    module = _load_file(Path(source)) if source.endswith(".py") else _load_module(source)
    function = getattr(module, name, None)
    if not callable(function):
        found = sorted(key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_")
        raise ConfigError(f"{source} has no function {name!r}; it has: {', '.join(found) or 'no functions'}")
    return cast("Callable[..., Any]", function)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"reward function file {path} does not exist (looked in {Path.cwd()})")
    spec = importlib.util.spec_from_file_location(f"accord_reward_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except FAULTS as error:  # the file is the user's; say where it fails
        raise ConfigError(
            f"{path} cannot be imported: {type(error).__name__}: {error}\n  at {_place(error, spec.origin)}"
        ) from error
    return module


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except FAULTS as error:  # the module is the user's, too
        reason = f"{type(error).__name__}: {error}\n  at {_place(error)}"
        raise ConfigError(f"reward module {name!r} cannot be imported: {reason}") from error
