"""Running the server: where it may listen, and the worker beside it."""

from __future__ import annotations

import gc
import ipaddress
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType

import uvicorn

from ..engine.building.worker_events import Notify
from ..engine.building.workers import WorkerOptions, one_beside
from ..registry import Registry
from ..registry.errors import UsageError
from .app import ServerOptions, create_app
from .oidc import OidcOptions
from .security import LOOPBACK

GRACE_SECONDS = 5  # for answers that are under way, when the server is stopped


@dataclass(frozen=True)
class Address:
    """Where to listen, and the names that the server answers to beside those of this machine."""

    host: str
    port: int
    names: tuple[str, ...] = ()

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


def options_for(
    registry: Registry, address: Address, *, login: bool, requests_per_minute: int, oidc: OidcOptions | None = None
) -> ServerOptions:
    """Raises UsageError where others could reach the server and nobody could log in."""
    login = login or not address.is_loopback
    if login and oidc is None and not registry.tokens.is_any_valid():
        where = "anybody needs a token" if address.is_loopback else f"{address.host} can be reached from elsewhere"
        raise UsageError(
            f"{where}, and there is no valid token",
            hint="reccocktail token create NAME --scope admin; or listen on 127.0.0.1",
        )
    names = (*LOOPBACK, *address.names) if address.is_loopback or address.names else ()
    return ServerOptions(names, login, requests_per_minute, oidc)


def run(
    registry: Registry,
    address: Address,
    options: ServerOptions,
    *,
    worker: WorkerOptions | None = None,
    notify: Notify = lambda event: None,
    listening: Callable[[], None] = lambda: None,
    deliver: Callable[[threading.Event], None] | None = None,
) -> None:
    """Serves until the process is asked to end, with a worker process beside it if its options are given. Raises UsageError.

    `deliver` sends what is due to webhooks until the event is set, in a thread.
    """
    app = create_app(registry, options)
    config = uvicorn.Config(
        app,
        host=address.host,
        port=address.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = _Server(config, listening, app.state.ending)
    with one_beside(registry, worker, notify) if worker else nullcontext(), _delivering(deliver):
        try:
            server.run()
        except SystemExit as error:  # uvicorn has logged why
            raise UsageError(
                f"the server cannot listen on {address.host}:{address.port}", hint="another --port, or end what has it"
            ) from error
        finally:
            app.state.asks.close(GRACE_SECONDS)
            app.state.hub.close(GRACE_SECONDS)


@contextmanager
def _delivering(deliver: Callable[[threading.Event], None] | None) -> Iterator[None]:
    ended = threading.Event()
    thread = threading.Thread(target=deliver, args=(ended,), name="webhooks", daemon=True) if deliver else None
    if thread is not None:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread is not None:
            thread.join(GRACE_SECONDS)


class _Server(uvicorn.Server):
    """Says when it listens, and sets `ending` when it is asked to end: the streams of events, which have no end of their own, look at it."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None], ending: threading.Event) -> None:
        super().__init__(config)
        self._listening, self._ending = listening, ending

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._ending.set()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # no collection looks at the libraries' objects again: a full one would hold an answer up by a third of a second
            gc.freeze()
            self._listening()
