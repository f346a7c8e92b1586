"""`server`: the web page and the HTTP API."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import click

from ..registry.errors import UsageError
from ..registry.signals import Stopped, exit_code
from .app import App, example, pass_app
from .console import say, warn
from .workers import BAD_NEWS

if TYPE_CHECKING:
    from ..engine.building.workers import WorkerEvent


@click.command(
    epilog=example(
        "reccocktail server --with-worker",
        "reccocktail server --host 0.0.0.0 --allow-host registry.example.org",
    )
)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="H", help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8321, show_default=True, metavar="P")
@click.option("--with-worker", is_flag=True, help="Also run queued builds, in a process beside the server.")
@click.option("--login", is_flag=True, help="Ask for a token on this machine, too.")
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
    app: App, host: str, port: int, with_worker: bool, login: bool, names: tuple[str, ...], requests_per_minute: int
) -> None:
    """Serve the web page and the HTTP API.

    On this machine alone nobody has to log in. Any other address needs tokens (`reccocktail token create`), and a proxy with TLS before it.
    """
    try:
        from ..server.running import Address, options_for, run
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed", hint="pip install 'reccocktail[server]'") from error
    from ..engine.building.workers import WorkerOptions

    address = Address(host, port, names)
    try:
        with app.registry() as registry:
            options = options_for(registry, address, login=login, requests_per_minute=requests_per_minute)
            worker = WorkerOptions(app.device(), actor=app.actor) if with_worker else None
            run(registry, address, options, worker=worker, notify=_hear, listening=lambda: say(f"serving {address}"))
    except KeyboardInterrupt as error:  # how it ends
        say("stopped")
        code = 0 if isinstance(error, Stopped) and error.number == signal.SIGTERM else exit_code(error)
        raise click.exceptions.Exit(code) from None


def _hear(event: WorkerEvent) -> None:
    (warn if event.what in BAD_NEWS else say)(str(event))
