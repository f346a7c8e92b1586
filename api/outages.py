"""A server that does not answer: why, in plain words, and how long it is asked again."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator

from ..registry.errors import UnreachableError
from .orders import Say

FIRST, BRIEF, LONG = 2.0, 16.0, 600.0
"""Seconds for which a server is asked again: one that never answered, one that did, one that has a build that is waited for."""
MOST_WAIT = 5.0  # seconds between two tries
CONNECT_SECONDS = 5.0


class Outage:
    """Since when a server has not answered, and what was said of it; good for one outage after the other."""

    def __init__(self, place: str, patience: float, say: Say) -> None:
        """`place` is the server as HOST:PORT; `say` hears once that it is away, and once that it is back."""
        self._place, self._patience, self._say = place, patience, say
        self._began, self._tries, self._told = 0.0, 0, False

    def wait(self, error: Exception) -> None:
        """Sleeps until the server may be asked again. Raises UnreachableError where that was long enough."""
        now = time.monotonic()
        self._began = self._began if self._tries else now
        self._tries += 1
        wait = min(MOST_WAIT, 2.0**self._tries / 4)
        if now + wait - self._began > self._patience:
            raise unreachable(self._place, error) from error
        if self._patience > FIRST and self._tries > 1 and not self._told:
            self._told = True
            left = f"{self._patience / 60:.0f} minutes" if self._patience > 60 else f"{self._patience:.0f} seconds"
            self._say(f"{self._place} is away: {reason(error)[0]}; it is asked again for up to {left}")
        time.sleep(wait)

    def over(self) -> None:
        """It has answered."""
        if self._told:
            self._say(f"{self._place} is back")
        self._tries, self._told = 0, False


def unreachable(place: str, error: Exception, *, hint: str | None = None) -> UnreachableError:
    why, what_to_do = reason(error)
    return UnreachableError(f"the server at {place} cannot be reached: {why}", hint=hint or what_to_do)


def reason(error: Exception) -> tuple[str, str]:
    """What went wrong between here and the server, and what to do."""
    import httpx2

    for cause in _causes(error):
        match cause:
            case ConnectionRefusedError():
                return "connection refused; nothing listens on that port", _START
            case socket.gaierror():
                return (
                    "no machine of that name is known",
                    "look at the name in RECCOCKTAIL_URL, and whether this machine is online",
                )
            case ssl.SSLCertVerificationError():
                return f"its certificate is not trusted: {cause.verify_message}", _CERTIFICATE
            case ssl.SSLError():
                return _tls(cause)
            case httpx2.ConnectTimeout():
                return f"no connection within {CONNECT_SECONDS:.0f} seconds", _ROUTE
            case httpx2.TimeoutException():
                return (
                    "the connection stands, but no answer came in time",
                    "look at the server's log; run the command again",
                )
            case OSError() if cause.strerror:
                return cause.strerror.lower(), _ROUTE
    return str(error) or type(error).__name__, _START


_START = (
    "is it running? `reccocktail server` starts one; RECCOCKTAIL_URL has its address, such as http://127.0.0.1:8321"
)
_ROUTE = "look at the name and the port in RECCOCKTAIL_URL, and whether a network or firewall lies between"
_CERTIFICATE = "name the host as its certificate does; for an authority of your own, SSL_CERT_FILE=/path/to/ca.pem names its certificate"


def _tls(error: ssl.SSLError) -> tuple[str, str]:
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return (
            "it speaks plain http on that port, and RECCOCKTAIL_URL says https",
            "write http://, or the port of the proxy that has TLS",
        )
    return (
        f"no encrypted connection: {error.reason or error}",
        "look at the port in RECCOCKTAIL_URL, and at the proxy before the server",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
