"""`server`: the web page and the HTTP API."""

from __future__ import annotations

import signal
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..registry.errors import UsageError
from ..registry.signals import Stopped, exit_code
from .app import App, example, pass_app
from .console import say, warn
from .workers import BAD_NEWS

if TYPE_CHECKING:
    from ..engine.building.worker_events import WorkerEvent
    from ..registry import Registry


@click.command(
    epilog=example(
        "reccocktail server --with-worker",
        "reccocktail server --host 0.0.0.0 --allow-host registry.example.org",
    )
)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="H", help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8321, show_default=True, metavar="P")
@click.option("--with-worker", is_flag=True, help="Also run queued builds, in a process beside the server.")
@click.option("--with-webhooks", is_flag=True, help="Also send what is due to webhooks.")
@click.option("--login", is_flag=True, help="Ask for a token on this machine, too.")
@click.option(
    "--oidc",
    "oidc_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Let people log in at an OpenID Connect provider; YAML, see docs/server.md.",
)
@click.option(
    "--allow-host", "names", multiple=True, metavar="NAME", help="Also answer to this name; repeat it for several."
)
@click.option(
    "--requests-per-minute",
    type=click.IntRange(1),
    default=1200,
    show_default=True,
    metavar="N",
    help="Limit for each token.",
)
@pass_app
def server(
    app: App,
    host: str,
    port: int,
    with_worker: bool,
    with_webhooks: bool,
    login: bool,
    oidc_file: Path | None,
    names: tuple[str, ...],
    requests_per_minute: int,
) -> None:
    """Serve the web page and the HTTP API.

    On this machine alone nobody has to log in. Any other address needs tokens (`reccocktail token create`), and a proxy with TLS before it.
    """
    beside = [name for name, wanted in (("a worker", with_worker), ("webhooks", with_webhooks)) if wanted]
    more = f" with {' and '.join(beside)}" if beside else ""
    say(
        f"starting on {host}, port {port}, for the registry of {app.settings.home}{more}; `serving` follows when it is ready"
    )
    try:
        from ..server.oidc import OidcOptions
        from ..server.running import Address, options_for, run
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed", hint="pip install 'reccocktail[server]'") from error
    from ..engine.building.workers import WorkerOptions

    address = Address(host, port, names)
    try:
        with app.registry() as registry:
            oidc = None if oidc_file is None else OidcOptions.read(oidc_file.expanduser())
            options = options_for(registry, address, login=login, requests_per_minute=requests_per_minute, oidc=oidc)
            worker = WorkerOptions(app.device(), actor=app.actor) if with_worker else None
            run(
                registry,
                address,
                options,
                worker=worker,
                notify=_hear,
                listening=lambda: say(f"serving {address}"),
                deliver=partial(_deliver, registry) if with_webhooks else None,
            )
    except KeyboardInterrupt as error:  # how it ends
        say("stopped")
        code = 0 if isinstance(error, Stopped) and error.number == signal.SIGTERM else exit_code(error)
        raise click.exceptions.Exit(code) from None


def _deliver(registry: Registry, ended: threading.Event) -> None:
    """In a thread: sends what becomes due to webhooks, until the server ends."""
    from ..engine.building.stale_events import StaleWatch
    from ..registry.webhooks.delivery import Deliverer
    from ..registry.webhooks.following import follow

    try:
        follow(Deliverer(registry.outbox), lambda done: None, warn, look=StaleWatch(registry).look, ended=ended)
    except Exception as error:  # noqa: BLE001  the server goes on, and says that this does not
        warn(f"nothing is sent to webhooks any more: {error}; `reccocktail webhook deliver --follow` does it, too")


def _hear(event: WorkerEvent) -> None:
    (warn if event.what in BAD_NEWS else say)(str(event))
