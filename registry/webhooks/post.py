"""One HTTP request to a target: to an address that was checked, within a time, and without following where it points to.

httpcore2 is what httpx2 itself sends with. It takes a network backend, which is where the address is fixed and the time bounded; it
reads no proxy from the environment, follows no redirect and keeps no cookie.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import httpcore2

from ..redaction import redacted
from .outbox import Answer
from .targets import PORTS, Target

CONNECT_SECONDS, TOTAL_SECONDS = 5.0, 15.0
MOST_READ = 4096  # bytes of an answer
LONGEST_ERROR = 300  # characters


def post(target: Target, at: Sequence[str], headers: Mapping[str, str], body: bytes) -> Answer:
    """Sends the body to the target at one of these addresses. Any answer but 2xx is an error, and so is none."""
    began = time.monotonic()
    try:
        code, error = _sent(target, at, headers, body)
    except httpcore2.TimeoutException as caught:
        code, error = None, f"no answer in time ({type(caught).__name__})"
    except (httpcore2.NetworkError, httpcore2.ProtocolError, ValueError, OSError) as caught:
        code, error = None, f"no answer: {str(caught) or type(caught).__name__}"
    return Answer(code, error and redacted(error)[:LONGEST_ERROR], round(time.monotonic() - began, 3))


def _sent(target: Target, at: Sequence[str], headers: Mapping[str, str], body: bytes) -> tuple[int, str | None]:
    backend = _AtAddress(at, time.monotonic() + TOTAL_SECONDS)
    port = None if target.port == PORTS[target.scheme] else target.port
    url = httpcore2.URL(scheme=target.scheme, host=target.host, port=port, target=target.path)
    times = {"connect": CONNECT_SECONDS, "read": TOTAL_SECONDS, "write": TOTAL_SECONDS, "pool": TOTAL_SECONDS}
    trusted = _trusted() if target.scheme == "https" else None  # to read all authorities takes a while
    with (
        httpcore2.ConnectionPool(ssl_context=trusted, network_backend=backend) as pool,
        pool.stream("POST", url, headers=[*headers.items()], content=body, extensions={"timeout": times}) as response,
    ):
        return response.status, _refusal(response)


def _refusal(response: httpcore2.Response) -> str | None:
    if 200 <= response.status < 300:
        return None
    if 300 <= response.status < 400:
        return f"answered {response.status}, a redirect, which is not followed: give the final URL"
    text = _beginning(response).decode("utf-8", "replace")
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f"answered {response.status}" + (f": {words}" if words else "")


def _beginning(response: httpcore2.Response) -> bytes:
    read = b""
    for chunk in response.iter_stream():
        read += chunk
        if len(read) >= MOST_READ:
            break
    return read[:MOST_READ]


@cache
def _trusted() -> ssl.SSLContext:
    return httpcore2.default_ssl_context()


class _AtAddress(httpcore2.NetworkBackend):
    """Connects to the given addresses, whatever the host is called, until a moment of the monotonic clock."""

    def __init__(self, at: Sequence[str], until: float) -> None:
        self._at, self._until = at, until
        self._system = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        for number, address in enumerate(self._at):
            try:
                left = _left(self._until, timeout, httpcore2.ConnectTimeout)
                return _Bounded(
                    self._system.connect_tcp(address, port, left, local_address, socket_options), self._until
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if number + 1 == len(self._at):
                    raise
        raise httpcore2.ConnectError("there is no address")


class _Bounded(httpcore2.NetworkStream):
    """A connection whose every step ends by the same moment: an answer that drips is given up."""

    def __init__(self, stream: httpcore2.NetworkStream, until: float) -> None:
        self._stream, self._until = stream, until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._until, timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._until, timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left = _left(self._until, timeout, httpcore2.ConnectTimeout)
        return _Bounded(self._stream.start_tls(ssl_context, server_hostname, left), self._until)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(until: float, timeout: float | None, late: type[Exception]) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise late("the time for the whole request is over")
    return left if timeout is None else min(left, timeout)
