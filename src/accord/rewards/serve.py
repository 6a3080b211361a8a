"""A reward server: texts in, scores out. The protocol is that of `http.py`."""

from __future__ import annotations

import errno
import hmac
import json
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from accord.errors import ConfigError, RewardError
from accord.rewards.mix import MixedReward
from accord.types import Rollout

READ_SECONDS = 60.0
"""How long a request may take to arrive."""


@dataclass(frozen=True)
class ServeLimits:
    """What a server takes."""

    batch: int = 256
    """Responses in one request."""
    megabytes: int = 64
    """Of one request's body, MiB."""
    wait: float = 300.0
    """Seconds that a request may wait for those before it; then it is told to come back (503)."""
    log_every: int = 100
    """A line is printed after so many requests."""
    stop: float = 30.0
    """Seconds that requests under way have at the end."""


class _AnswerError(Exception):
    """An answer that is no score."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RewardServer(ThreadingHTTPServer):
    """Answers `POST /score` and `GET /health`. One batch is scored at a time, as the sources are not made for more.

    Args:
        rewards: the sources.
        host, port: where to listen; port 0 takes a free one.
        limits: see there.
        key: if given, requests must carry it as a bearer token.
        say: prints a line.

    Raises:
        ConfigError: the address cannot be used.
    """

    daemon_threads = True
    block_on_close = False  # `close` waits, but not for ever

    def __init__(
        self,
        rewards: MixedReward,
        host: str = "127.0.0.1",
        port: int = 8000,
        limits: ServeLimits | None = None,
        key: str | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.rewards, self.limits, self.key, self.say = rewards, limits or ServeLimits(), key, say
        self.requests = self.responses = self.failures = 0
        self._seconds = 0.0
        self._turn, self._state, self._active = threading.Lock(), threading.Lock(), 0
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            elsewhere = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
            other = "--host is a name or IPv4 address of this machine" if elsewhere else "choose another --port"
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}; {other}") from error
        except OverflowError as error:
            raise ConfigError(f"--port {port} is none: it is a number from 0 to 65535") from error

    @property
    def address(self) -> str:
        """Where it listens, as `--reward` takes it."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def health(self) -> dict[str, Any]:
        """What `GET /health` says."""
        known = {"rewards": self.rewards.labels, "max_batch": self.limits.batch, "needs_key": self.key is not None}
        return {"status": "ok", **known}

    def score(self, request: Any) -> dict[str, Any]:
        """The answer to a request's JSON.

        Raises:
            RewardError: a source failed.
        """
        rollouts = _rollouts(request, self.limits.batch)
        if not self._turn.acquire(timeout=self.limits.wait):
            raise _AnswerError(503, f"busy: other requests have taken more than {self.limits.wait:g} s")
        try:
            started = time.perf_counter()
            scored = self.rewards.score_known(rollouts)
            self.responses += len(rollouts)
            self._seconds += time.perf_counter() - started
        finally:
            self._turn.release()
        return {"scores": [rollout.score for rollout in scored]}

    def count(self, failed: bool) -> None:
        """Count a request that was answered, and say so now and then."""
        with self._state:
            self.requests += 1
            self.failures += failed
            if self.requests % self.limits.log_every == 0:
                speed = self.responses / max(self._seconds, 1e-9)
                self.say(
                    f"{self.requests} requests, {self.failures} refused or failed, {self.responses} responses scored "
                    f"({speed:.0f}/s)"
                )

    def enter(self, step: int) -> None:
        """Count requests under way, up or down."""
        with self._state:
            self._active += step

    def serve_until_stopped(self) -> None:
        """Serve until SIGINT or SIGTERM, then finish what is under way. From the main thread."""
        stop = threading.Event()
        before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGINT, signal.SIGTERM)}
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            while not stop.wait(1.0):
                if not thread.is_alive():
                    raise RewardError("the server's thread has ended")
        finally:
            self.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Take no more requests, and wait a while for those under way."""
        self.shutdown()
        deadline = time.monotonic() + self.limits.stop
        while self._active and time.monotonic() < deadline:
            time.sleep(0.02)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no defect; anything else is shown."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: RewardServer
    timeout = READ_SECONDS
    server_version = "accord"
    sys_version = ""

    def log_message(self, format: str, *args: Any) -> None:
        """The server counts instead."""

    def do_GET(self) -> None:
        """`/health`."""
        self._answer("/health", self.server.health)

    def do_POST(self) -> None:
        """`/score`."""
        self._answer("/score", lambda: self.server.score(self._body()))

    def _answer(self, path: str, act: Callable[[], Mapping[str, Any]]) -> None:
        self.server.enter(1)
        length = self.headers.get("Content-Length", "")
        self._unread = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None
        self._deadline = time.monotonic() + READ_SECONDS
        try:
            self._check(path)
            status, content = 200, act()
        except _AnswerError as error:
            status, content = error.status, {"error": str(error)}
        except RewardError as error:
            status, content = 500, {"error": str(error)}
        except (ConnectionError, TimeoutError):
            self.close_connection = True
            self.server.enter(-1)
            self.server.count(failed=True)
            return
        except Exception as error:  # a defect: tell both sides, and go on
            traceback.print_exc()
            status, content = 500, {"error": f"{type(error).__name__}: {error}"}
        if self.command == "POST":  # before the answer, so that whoever has it finds it counted
            self.server.count(failed=status != 200)
        try:
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            if status == 503:
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(raw)
            self._drain()
        finally:
            self.server.enter(-1)

    def _drain(self) -> None:
        """Take in what was not read of a refused request: a connection closed before is reset, and the answer is lost with it."""
        with suppress(ConnectionError, TimeoutError):
            while self._unread and time.monotonic() < self._deadline and self._part():
                pass

    def _part(self) -> bytes:
        """The next part of the body; nothing if the client sends no more."""
        assert self._unread is not None
        part: bytes = self.rfile.read1(min(65536, self._unread))  # type: ignore[attr-defined]
        self._unread -= len(part)
        return part

    def _check(self, path: str) -> None:
        if self.path.partition("?")[0].rstrip("/") != path:
            raise _AnswerError(404, f"there is nothing at {self.path}: POST /score and GET /health")
        key = self.server.key
        given = self.headers.get("Authorization")
        if key is not None and (
            path == "/score" or given is not None
        ):  # a probe of health has no key, a client shows its own
            given = (given or "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), key.encode()):
                raise _AnswerError(401, "the key is missing or wrong: send it as a bearer token")

    def _body(self) -> Any:
        length, most = self._unread, self.server.limits.megabytes * 2**20
        if length is None:
            raise _AnswerError(411, "a request needs its Content-Length")
        if length > most:
            raise _AnswerError(413, f"a request of {length} bytes; at most {most} are read: send smaller batches")
        raw = bytearray()
        while self._unread:
            part = self._part()
            if not part:
                raise _AnswerError(400, f"the request broke off after {len(raw)} of {length} bytes")
            raw += part
            if time.monotonic() > self._deadline:
                raise _AnswerError(408, f"the request took longer than {READ_SECONDS:g} s to arrive")
        try:
            return json.loads(raw)
        except ValueError as error:
            raise _AnswerError(400, f"the request is no JSON: {error}") from None


def _rollouts(request: Any, most: int) -> list[Rollout]:
    """Texts of a request as rollouts without tokens."""
    if not isinstance(request, dict):
        raise _AnswerError(400, 'a request is {"prompts": [...], "responses": [...], "columns": {...}}')
    prompts, responses, columns = request.get("prompts"), request.get("responses"), request.get("columns", {})
    for name, texts in (("prompts", prompts), ("responses", responses)):
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise _AnswerError(400, f'"{name}" must be a list of texts')
    assert isinstance(prompts, list) and isinstance(responses, list)
    if len(prompts) != len(responses):
        raise _AnswerError(400, f"{len(prompts)} prompts and {len(responses)} responses; one each is needed")
    if not 0 < len(responses) <= most:
        raise _AnswerError(413 if responses else 400, f"{len(responses)} responses in a request; it takes 1 to {most}")
    if not isinstance(columns, dict) or not all(
        isinstance(c, list) and len(c) == len(responses) for c in columns.values()
    ):
        raise _AnswerError(400, '"columns" must hold lists with one entry a response')
    return [
        Rollout((), (), (), "stop", prompt, response, {name: column[index] for name, column in columns.items()})
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on that host."""
    try:
        return all(str(info[4][0]) in ("127.0.0.1", "::1") for info in socket.getaddrinfo(host, None))
    except OSError:
        return False
