"""A real server on the loopback that does what a script says, request by request; the faults of servers are made here."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[[BaseHTTPRequestHandler, Any], None]
"""Answers a request, given its handler and its JSON."""


@dataclass
class Scripted:
    """What the server will do, and what it got."""

    acts: Sequence[Act]
    """For the first, second, ... POST; the last one goes on for ever."""
    bodies: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    address: str = ""
    most_at_once: int = 0
    at_once: int = 0


def reply(content: Any, status: int = 200, **headers: str) -> Act:
    """Answer with JSON (or with bytes as they are)."""

    def act(handler: BaseHTTPRequestHandler, body: Any) -> None:
        made = content(body) if callable(content) else content
        raw = made if isinstance(made, bytes) else json.dumps(made).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(raw)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(raw)

    return act


def lengths(body: Any) -> dict[str, Any]:
    """Scores of the reward protocol: the lengths of the responses."""
    return {"scores": [len(response) for response in body["responses"]]}


def chat(text: str) -> Any:
    """A chat completion."""
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def slow(seconds: float, then: Act) -> Act:
    """Answer late."""

    def act(handler: BaseHTTPRequestHandler, body: Any) -> None:
        time.sleep(seconds)
        then(handler, body)

    return act


def hang_up(handler: BaseHTTPRequestHandler, body: Any) -> None:
    """Close the connection without an answer, as a server that was killed does."""
    handler.close_connection = True
    handler.connection.close()


def break_off(handler: BaseHTTPRequestHandler, body: Any) -> None:
    """Promise more than is sent."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"scores": [')
    handler.wfile.flush()
    handler.connection.close()


def drip(handler: BaseHTTPRequestHandler, body: Any) -> None:
    """A byte now and then: each comes in time, the answer never."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


@contextmanager
def server(*acts: Act, health: Act | None = None) -> Iterator[Scripted]:
    """Run a server in a thread."""
    script, lock = Scripted(acts), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def count(self, change: int) -> None:
            with lock:
                script.at_once += change
                script.most_at_once = max(script.most_at_once, script.at_once)

        def send_response(self, *of: Any) -> None:
            """A request is over before its client can know it and send the next."""
            if self.command == "POST":
                self.count(-1)
            super().send_response(*of)

        def do_GET(self) -> None:
            (health or reply({"status": "ok"}))(self, None)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(script.bodies)
                script.bodies.append(body)
                script.headers.append({**self.headers, "path": self.path})
                script.times.append(time.monotonic())
            self.count(1)
            with suppress(ConnectionError, ValueError):  # the client has gone, or the act has closed the connection
                script.acts[min(number, len(script.acts) - 1)](self, body)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: Any) -> None: ...

    http = Quiet(("127.0.0.1", 0), Handler)
    script.address = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield script
    finally:
        http.shutdown()
        http.server_close()


def dead_address() -> str:
    """An address at which nobody listens."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
