"""Asking servers over HTTP, for `http.py` and `judge.py`: in parallel, with deadlines, and again where a failure may pass."""

from __future__ import annotations

import http.client
import json
import os
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from accord.config import RemoteConfig
from accord.errors import ConfigError, RewardError
from accord.rewards.protocol import Counts

T = TypeVar("T")

PASSING = {408, 425, 429, *range(500, 600)} - {501, 505}
"""Status codes that may be another a moment later; the others will not."""
LONGEST_PAUSE = 30.0
"""Seconds, of those that grow from try to try. A server may ask for more."""
ANSWER_BYTES = 64 * 2**20
SHOWN = 300
"""Characters of an answer in a message."""


class _PassingError(Exception):
    """A failure that may not happen again."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause
        """Seconds that the server asks to wait."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: a POST would become a GET, and the key would go to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class HttpClient:
    """Requests to one server.

    Args:
        config: address and limits.
        label: of the reward, for errors.

    Raises:
        ConfigError: the environment variable of the key is not set.
    """

    def __init__(self, config: RemoteConfig, label: str) -> None:
        self.config, self.label = config, label
        self.counts = Counts("repeated")
        self._key = os.environ.get(config.key, "").strip() if config.key else ""
        if config.key and not self._key:
            raise ConfigError(f"reward {label}: the environment variable {config.key} (`key`) is not set or empty")
        host = urlsplit(config.address).hostname
        proxies: dict[str, str] | None = {} if host in ("localhost", "127.0.0.1", "::1") else None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _NoRedirect())
        self._random = random.Random()  # its own: the run's generators must not move with the network

    def get(self, path: str, seconds: float) -> Any:
        """The JSON at a path, asked for once.

        Raises:
            RewardError: no answer, or no JSON.
        """
        try:
            return self._request(path, None, time.monotonic() + seconds)
        except _PassingError as error:
            raise RewardError(f"reward {self.label}: GET {self.config.address}{path} failed: {error}") from None

    def post_all(
        self,
        path: str,
        bodies: Sequence[Mapping[str, Any]],
        read: Callable[[int, Any], T],
        deadline: float | None = None,
    ) -> list[T]:
        """Post each body and read its answer; all of them, or an error.

        Args:
            path: below the address.
            bodies: one request each, at most `concurrency` under way at a time.
            read: from a body's number and its answer to what is wanted; raises ValueError for an answer that is none.
            deadline: on the clock of `time.monotonic`; by default `config.deadline` from now.

        Raises:
            RewardError: names the address, the attempts and what came back.
        """
        deadline = time.monotonic() + self.config.deadline if deadline is None else deadline
        try:
            data = [json.dumps(body, allow_nan=False).encode() for body in bodies]
        except (TypeError, ValueError) as error:
            raise RewardError(f"reward {self.label}: what is to be sent cannot be written as JSON: {error}") from None
        stop = threading.Event()
        pool = ThreadPoolExecutor(min(self.config.concurrency, max(len(bodies), 1)))
        try:
            futures = [pool.submit(self._post, path, i, body, read, deadline, stop) for i, body in enumerate(data)]
            done, pending = wait(futures, max(0.0, deadline - time.monotonic()), FIRST_EXCEPTION)
            failed = next((fault for future in futures if future in done and (fault := future.exception())), None)
            if failed is not None:
                raise failed
            if pending:
                raise RewardError(
                    f"reward {self.label}: {len(pending)} of {len(bodies)} requests to {self.config.address}{path} had no "
                    f"answer within {self.config.deadline:g} s (`deadline`)"
                )
            return [future.result() for future in futures]
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _post(
        self, path: str, number: int, body: bytes, read: Callable[[int, Any], T], deadline: float, stop: threading.Event
    ) -> T:
        place, reasons = f"POST {self.config.address}{path}", []
        for attempt in range(self.config.attempts):
            try:
                return read(number, self._request(path, body, deadline))
            except ValueError as error:
                raise RewardError(f"reward {self.label}: {place}: {self._without_key(str(error))}") from None
            except _PassingError as error:
                reasons.append(str(error))
                pause = min(self.config.pause * 2**attempt, LONGEST_PAUSE) * self._random.uniform(0.5, 1.0)
                pause, asked = max(pause, error.pause), error.pause
            last = attempt + 1 == self.config.attempts
            if last or time.monotonic() + pause >= deadline:
                break
            self.counts.add("repeated")
            if stop.wait(pause):
                break
        why = "" if len(reasons) == self.config.attempts else f"; then the deadline of {self.config.deadline:g} s came"
        if why and time.monotonic() + asked >= deadline:
            why = f"; it asks to wait {asked:.0f} s (Retry-After), longer than the deadline of {self.config.deadline:g} s allows"
        told = "; ".join(f"{n}. {reason}" for n, reason in enumerate(reasons, 1))
        raise RewardError(f"reward {self.label}: {place} failed, attempts: {len(reasons)}: {told}{why}")

    def _request(self, path: str, body: bytes | None, deadline: float) -> Any:
        """One request; the answer's JSON. Raises `_PassingError` or RewardError."""
        url = self.config.address + path
        until = min(deadline, time.monotonic() + self.config.timeout)
        seconds = until - time.monotonic()
        if seconds <= 0:
            raise _PassingError("the deadline came before the request")
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "accord"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(url, body, headers)
        try:
            with self._opener.open(request, timeout=seconds) as response:
                raw = _read(response, until)
        except urllib.error.HTTPError as error:
            raise self._refused(error, until) from None
        except TimeoutError:
            raise _PassingError(f"no answer within {self.config.timeout:g} s (`timeout`)") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise RewardError(f"reward {self.label}: {url}: {error.reason}") from None
            late = isinstance(error.reason, TimeoutError)
            raise _PassingError(
                f"no connection within {self.config.timeout:g} s" if late else f"{error.reason}"
            ) from None
        except (http.client.HTTPException, OSError) as error:
            raise _PassingError(f"{type(error).__name__}: {error}") from None
        try:
            return json.loads(raw)
        except ValueError:
            raise RewardError(f"reward {self.label}: {url} answered with no JSON: {self._short(raw)}") from None

    def _refused(self, error: urllib.error.HTTPError, until: float) -> Exception:
        try:
            said = self._short(_message(_read(error, until)))
        except (http.client.HTTPException, OSError, _PassingError):
            said = "(its text was lost)"
        text = f"HTTP {error.code} {error.reason}: {said}"
        if error.code in PASSING:
            return _PassingError(text, _retry_after(error.headers.get("Retry-After") or "0"))
        hint = ""
        if error.code in (401, 403):
            hint = (
                "; name the environment variable of the API key in `key`" if not self._key else "; it refuses the key"
            )
        if 300 <= error.code < 400:
            hint = f"; it redirects to {error.headers.get('Location')}: give that address if it is the right one"
        return RewardError(f"reward {self.label}: {error.url} answered {text}{hint}")

    def _short(self, raw: bytes) -> str:
        text = self._without_key(raw[: 4 * SHOWN].decode(errors="replace"))
        return repr(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _message(raw: bytes) -> bytes:
    """What an error's JSON says in the fields that servers use for it; all of it if there is no such field."""
    try:
        told = json.loads(raw)["error"]
    except (ValueError, KeyError, TypeError):
        return raw
    told = told.get("message") if isinstance(told, dict) else told
    return told.encode() if isinstance(told, str) else raw


def _read(response: Any, until: float) -> bytes:
    """The body, part by part, so that a server that sends a byte now and then cannot hold us."""
    parts, size = [], 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if size > ANSWER_BYTES:
            raise _PassingError(f"an answer of more than {ANSWER_BYTES // 2**20} MiB")
        if time.monotonic() > until:
            raise _PassingError("the answer came too slowly")
    expected = response.headers.get("Content-Length") if response.headers else None
    if expected is not None and expected.isdigit() and size < int(expected):
        raise _PassingError(f"the answer broke off after {size} of {expected} bytes")
    return b"".join(parts)


def _retry_after(value: str) -> float:
    """Seconds to wait, from a header that gives them or the date at which they are over; 0 for what is neither."""
    try:
        return max(0.0, float(value))  # in this order, for which NaN is 0
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):  # no date, or an odd zone
        return 0.0
