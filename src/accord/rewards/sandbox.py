"""The process in which code of responses runs: limits first, then the code, then the tests. Started by `code.py`, never imported.

It runs as `python -I -S -B sandbox.py FD` with its job on the standard input and writes its results to the descriptor FD.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from types import CodeType
from typing import Any

NOBODY = 65534
"""User to become when started as root: file permissions and the limit on processes mean nothing to root."""
BLOCKED = (
    "socket.",
    "subprocess.",
    "ctypes.",
    "pty.",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.kill",
    "os.killpg",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.system",
    "signal.pthread_kill",
    "syslog.",
    "sys.addaudithook",
    "resource.setrlimit",
    "resource.prlimit",
)
"""Events (or their beginnings) of `sys.audit` that code may not cause: network, processes, other libraries."""
CHANGES = ("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate",
           "os.utime", "shutil.", "os.chdir", "os.fchdir", "os.setxattr", "os.removexattr")  # fmt: skip
"""Events that change files; their paths must lie in the working folder."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
SHOWN = 200
"""Characters of an error that are reported."""


def limit(job: dict[str, Any]) -> None:
    """Set the limits of this process; they hold for what it starts, too."""
    memory, file = job["memory_mb"] * 2**20, job["file_mb"] * 2**20
    seconds = math.ceil(job["timeout"])
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, file),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_AS, memory),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def become_nobody() -> None:
    """Give up root's rights, where there are any and the standard library can still be read without them."""
    if os.geteuid() != 0:
        return
    try:
        os.setgroups([])
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        readable = os.access(os.__file__, os.R_OK, effective_ids=True) and os.access(".", os.W_OK, effective_ids=True)
        os.seteuid(0)
        os.setegid(0)
        if readable:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
    except OSError:
        os.seteuid(0)  # a user namespace without that user: its root has no rights outside of it


def guard(folder: str) -> None:
    """Refuse network, processes, and changes of files outside the folder. A determined program finds a way around."""
    inside = folder + os.sep
    realpath, fspath = os.path.realpath, os.fspath

    def beside(path: object) -> bool:
        if isinstance(path, int) or path is None:
            return False
        text = fspath(path)  # type: ignore[call-overload]
        real = realpath(text.decode(errors="replace") if isinstance(text, bytes) else text)
        return real != folder and not real.startswith(inside) and real != os.devnull

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            changes = (isinstance(flags, int) and flags & WRITES) or (mode and set(mode) & set("wax+"))
            if changes and beside(path):
                raise PermissionError(f"code of a response may not write outside its folder: {path!r}")
        elif event.startswith(BLOCKED):
            raise PermissionError(f"code of a response may not do this: {event}")
        elif event.startswith(CHANGES) and any(
            beside(a) for a in arguments if isinstance(a, (str, bytes, os.PathLike))
        ):
            raise PermissionError(f"code of a response may not change files outside its folder: {event}")

    sys.addaudithook(hook)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """How many tests `passed`, and the `error` of the first that did not: a report of few bytes, however many tests there are."""
    scope: dict[str, Any] = {"__name__": "response"}
    try:
        for name in ("before", "code"):
            exec(_compiled(job[name], name), scope)
    except BaseException as error:
        return {"passed": 0, "error": _said(error)}
    passed, first = 0, ""
    for test in job["tests"]:
        try:
            exec(_compiled(test, "test"), dict(scope))
            passed += 1
        except BaseException as error:
            first = first or _said(error)
    return {"passed": passed, "error": first}


def run_as_one(job: dict[str, Any]) -> dict[str, Any]:
    """The job with `before` and `code` as one text: a function's head and its body."""
    return {**job, "before": "", "code": job["before"] + job["code"]}


def _compiled(text: str, name: str) -> CodeType:
    return compile(text, f"<{name}>", "exec", dont_inherit=True)


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:SHOWN]
    except BaseException:
        return "an error that cannot be shown"


def main() -> None:
    """Read the job, run it, report, and end without whatever the code left to be done at the end."""
    report = int(sys.argv[1])
    job = json.loads(sys.stdin.buffer.read())
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    become_nobody()
    limit(job)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    guard(os.path.realpath("."))
    secret = job.pop("secret")
    os.write(report, (secret + "\n").encode())
    os.dup2(nothing, 2)
    said = run(run_as_one(job) if job["joined"] else job)
    os.write(report, (secret + json.dumps(said) + "\n").encode())
    os._exit(0)


if __name__ == "__main__":
    main()
