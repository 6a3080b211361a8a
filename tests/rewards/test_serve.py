"""The reward server, over a real socket, mostly through our own client."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from accord.config import UrlConfig
from accord.errors import ConfigError, RewardError
from accord.rewards import FunctionReward, MixedReward, UrlReward
from accord.rewards.serve import RewardServer, ServeLimits, is_loopback
from accord.types import Rollout


def length(prompts, responses, level):
    return [None if a is None else float(len(r) + a) for r, a in zip(responses, level, strict=True)]


@contextmanager
def running(function=length, limits: ServeLimits | None = None, **options: Any) -> Iterator[RewardServer]:
    server = RewardServer(MixedReward([(FunctionReward(function, "f"), 2.0)]), port=0, limits=limits, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()


def ask(server: RewardServer, body: Any, path: str = "/score", method: str = "POST", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, raw, headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_a_mixture_is_served_to_our_own_client(rollouts):
    with running() as server:
        source = UrlReward(UrlConfig(address=server.address, batch_size=2), "remote")
        assert source.score(rollouts) == [2 * (1 + 1.0), None, 2 * (1 + 3.0)]
        health = {"status": "ok", "rewards": ["f"], "max_batch": 256, "needs_key": False}
        assert ask(server, None, "/health", "GET") == (200, health)
    assert (server.requests, server.responses, server.failures) == (2, 3, 0)


ONE = {"prompts": ["p"], "responses": ["r"], "columns": {"level": [0]}}
WRONG = {
    "no_json": (b"{", 400, "the request is no JSON"),
    "a_list": ([1], 400, "a request is"),
    "no_responses": ({"prompts": ["p"]}, 400, '"responses" must be a list of texts'),
    "numbers": (ONE | {"responses": [3]}, 400, '"responses" must be a list of texts'),
    "unequal": (ONE | {"prompts": ["p", "q"]}, 400, "2 prompts and 1 responses"),
    "none": ({"prompts": [], "responses": []}, 400, "0 responses"),
    "too_many": ({"prompts": ["p"] * 5, "responses": ["r"] * 5}, 413, "5 responses in a request; it takes 1 to 4"),
    "columns": (ONE | {"columns": {"level": [1, 2]}}, 400, '"columns" must hold lists'),
    "too_large": (b" " * (2**20 + 1), 413, "at most 1048576 are read"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_request_that_is_none_is_answered_with_the_reason(fault):
    body, status, said = WRONG[fault]
    with running(limits=ServeLimits(batch=4, megabytes=1)) as server:
        got, answer = ask(server, body)
        assert got == status and said in answer["error"]
        assert ask(server, ONE) == (200, {"scores": [2.0]}), "and it goes on"
    assert server.failures == 1


def test_other_paths_and_lengths():
    with running() as server:
        assert ask(server, ONE, "/other")[0] == 404
        assert ask(server, None, "/score", "GET")[0] == 404
        with socket.create_connection(server.server_address[:2], 5) as raw:
            raw.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 411 " in raw.recv(200)
        for odd in ("\u00b2".encode("latin-1"), b"-1", b"9" * 5000):
            with socket.create_connection(server.server_address[:2], 5) as raw:
                raw.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: " + odd + b"\r\n\r\n")
                assert b" 411 " in raw.recv(200)
        with socket.create_connection(server.server_address[:2], 5) as raw:
            raw.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{}")
            raw.shutdown(socket.SHUT_WR)
            assert b" 400 " in raw.recv(200)


def test_a_reward_that_fails_is_told_to_the_client(rollouts):
    def broken(prompts, responses):
        raise KeyError("lost")

    def nan(prompts, responses):
        return [float("nan")] * len(responses)

    for function, said in ((broken, "reward f raised KeyError: .*lost"), (nan, "reward f gave nan for sample 0")):
        with running(function) as server:
            source = UrlReward(UrlConfig(address=server.address, attempts=1), "remote")
            with pytest.raises(RewardError, match=f"reward remote: .* HTTP 500 .*{said}"):
                source.score(rollouts)


def test_a_key_is_asked_for():
    with running(key="s3cret") as server:
        assert ask(server, ONE)[0] == 401 == ask(server, ONE, Authorization="Bearer other")[0]
        assert ask(server, ONE, Authorization="Bearer s3cret")[0] == 200
        assert ask(server, None, "/health", "GET")[1]["needs_key"] is True
        assert ask(server, None, "/health", "GET", Authorization="Bearer other")[0] == 401
        assert ask(server, None, "/health", "GET", Authorization="Bearer s3cret")[0] == 200


LARGE = json.dumps(ONE | {"prompts": ["x" * 8_000_000]}).encode()  # more than sockets hold


def test_who_is_refused_in_the_middle_of_a_large_request_gets_to_know_why(rollouts):
    with running(key="s3cret") as server:
        assert ask(server, LARGE)[0] == 401 and ask(server, LARGE, "/other")[0] == 404
    large = [replace(rollout, prompt_text="x" * 8_000_000) for rollout in rollouts]
    with running(limits=ServeLimits(megabytes=1)) as server:
        source = UrlReward(UrlConfig(address=server.address, pause=0.01), "remote")
        with pytest.raises(RewardError, match=r"HTTP 413 .*send smaller batches"):
            source.score(large)
        assert source.take_counts() == {"repeated": 0}


def test_who_says_it_sends_more_than_it_does_holds_nobody_up(monkeypatch):
    monkeypatch.setattr("accord.rewards.serve.READ_SECONDS", 0.3)
    monkeypatch.setattr("accord.rewards.serve._Handler.timeout", 0.3)
    started = time.monotonic()
    with running(limits=ServeLimits(megabytes=1)) as server:
        with socket.create_connection(server.server_address[:2], 5) as raw:
            raw.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n{}")
            assert b" 413 " in raw.recv(200)
            while raw.recv(1000):  # until the server closes
                pass
        assert ask(server, ONE)[0] == 200
    assert time.monotonic() - started < 5


def test_what_would_be_refused_later_is_told_when_the_reward_is_opened(monkeypatch):
    monkeypatch.setenv("WRONG", "other")
    monkeypatch.setenv("RIGHT", "s3cret")
    with running(key="s3cret", limits=ServeLimits(batch=64)) as server:
        with pytest.raises(ConfigError, match=r"reward remote: .* asks for a key: .*`url.key`"):
            UrlReward(UrlConfig(address=server.address), "remote")
        with pytest.raises(RewardError, match=r"/health answered HTTP 401 .*it refuses the key"):
            UrlReward(UrlConfig(address=server.address, key="WRONG"), "remote")
        UrlReward(UrlConfig(address=server.address, key="RIGHT", batch_size=64), "remote")
        with pytest.raises(
            ConfigError, match=r"`url.batch_size` is 65, and .* takes 64 responses in a request at most"
        ):
            UrlReward(UrlConfig(address=server.address, key="RIGHT", batch_size=65), "remote")
    assert server.requests == 0


def test_one_batch_is_scored_at_a_time_and_who_waits_too_long_is_told():
    busy: list[int] = []

    def slow(prompts, responses):
        busy.append(1)
        assert len(busy) == 1
        time.sleep(0.5)
        busy.pop()
        return [0.0] * len(responses)

    with running(slow, ServeLimits(wait=0.1)) as server:
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(server, ONE)[0])) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [200, 503, 503]


def test_a_line_now_and_then():
    lines: list[str] = []
    with running(limits=ServeLimits(log_every=2), say=lines.append) as server:
        for body in (ONE, {}, ONE, ONE, ONE):
            ask(server, body)
    assert [line.split(" (")[0] for line in lines] == [
        "2 requests, 1 refused or failed, 1 responses scored",
        "4 requests, 1 refused or failed, 3 responses scored",
    ]


def test_what_is_under_way_is_finished_at_the_end():
    def slow(prompts, responses):
        time.sleep(0.4)
        return [1.0]

    answers: list[Any] = []
    with running(slow) as server:
        thread = threading.Thread(target=lambda: answers.append(ask(server, ONE)))
        thread.start()
        while not server._active:
            time.sleep(0.01)
    assert server._active == 0, "`close` waits"
    thread.join()
    assert answers == [(200, {"scores": [2.0]})]


def test_an_address_that_cannot_be_used():
    with (
        running() as server,
        pytest.raises(ConfigError, match=r"cannot listen on 127.0.0.1:\d+: .*choose another --port"),
    ):
        RewardServer(server.rewards, port=server.server_address[1])
    with pytest.raises(ConfigError, match="--port 70000"):
        RewardServer(server.rewards, port=70000)
    for host in ("no such host", "203.0.113.1"):  # the second is kept for documentation, and nobody's
        with pytest.raises(ConfigError, match=f"cannot listen on {host}:0: .*; --host is a name or IPv4 address"):
            RewardServer(server.rewards, host, 0)
    assert is_loopback("localhost") and not is_loopback("0.0.0.0")


def test_rollouts_of_texts_carry_the_columns():
    seen: list[Rollout] = []

    class Source:
        label = "seen"

        def score(self, rollouts):
            seen.extend(rollouts)
            return [0.0] * len(rollouts)

    server = RewardServer(MixedReward([(Source(), 1.0)]), port=0)
    server.score({"prompts": ["p", "q"], "responses": ["r", "s"], "columns": {"a": [1, None]}})
    server.server_close()
    assert [(r.prompt_text, r.response_text, r.columns["a"]) for r in seen] == [("p", "r", 1), ("q", "s", None)]
