"""`webhook log|redeliver|deliver`: what was sent, what waits, and sending it."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import click

from ..registry.errors import UsageError
from ..registry.signals import Stopped, exit_code
from .app import App, example, json_option, pass_app
from .console import NO_MORE, answer, counted, page, say, table, tell, warn
from .webhooks import webhook

if TYPE_CHECKING:
    from ..registry import Registry
    from ..registry.webhooks.outbox import Delivery

STATUSES = ("pending", "delivered", "dead")


@webhook.command(
    epilog=example(
        "reccocktail webhook log",
        "reccocktail webhook log ops --status dead",
        "reccocktail webhook log --delivery 17",
    )
)
@click.argument("name", required=False)
@click.option("--status", type=click.Choice(STATUSES), help="Only deliveries with this status.")
@click.option("--delivery", type=click.IntRange(1), metavar="ID", help="Every attempt of one delivery instead.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option(
    "--after", type=click.IntRange(1), metavar="ID", help="Start after this delivery: the last of the previous page."
)
@json_option
@pass_app
def log(
    app: App,
    name: str | None,
    status: str | None,
    delivery: int | None,
    limit: int,
    after: int | None,
    as_json: bool,
) -> None:
    """List what was sent to webhooks and what waits, newest first."""
    from ..registry.webhooks.outbox import DeliveryFilter

    if delivery is not None:
        if name is not None or status is not None or after is not None:
            raise UsageError("--delivery is about one delivery: leave the name, --status and --after out")
        _show_attempts(app, delivery, as_json)
        return
    with app.backend() as backend:
        found = backend.outbox.list(DeliveryFilter(name, status), limit=limit + 1, after=after)

    def show() -> None:
        rows = [
            [each.id, f"{each.created_at:%Y-%m-%d %H:%M:%S}", each.webhook, f"{each.happened} {each.subject}", each.status,
             each.attempts, _answered(each)]
            for each in found[:limit]
        ]  # fmt: skip
        columns = ["id", "when (UTC)", "webhook", "what", "status", "attempts", "last answer"]
        table(
            columns,
            rows,
            empty=_none(name, status) if after is None else NO_MORE,
            right=("attempts",),
            spare=("attempts",),
        )
        page([each.id for each in found], limit)

    answer(as_json, [each.to_json() for each in found[:limit]], show)


def _none(name: str | None, status: str | None) -> str:
    if status is not None:
        return f"no delivery is {status}"
    return f"nothing was sent{'' if name is None else f' to {name}'} yet, and nothing waits; `reccocktail webhook test NAME` sends something"


def _answered(each: Delivery) -> str:
    return each.error or (str(each.status_code) if each.status_code else "-")


def _show_attempts(app: App, delivery: int, as_json: bool) -> None:
    with app.backend() as backend:
        found = backend.outbox.attempts(delivery)
    rows = [
        [f"{each.at:%Y-%m-%d %H:%M:%S}", each.status_code, f"{each.seconds:.2f} s", each.error or "delivered"]
        for each in found
    ]
    columns = ["when (UTC)", "status code", "took", "outcome"]
    answer(as_json, [each.to_json() for each in found], lambda: table(columns, rows, empty="it was not tried yet"))


@webhook.command(epilog=example("reccocktail webhook redeliver 17 18", "reccocktail webhook redeliver --dead ops"))
@click.argument("ids", metavar="[ID]...", nargs=-1, type=click.IntRange(1))
@click.option("--dead", metavar="NAME", help="All deliveries to this webhook that were given up.")
@json_option
@pass_app
def redeliver(app: App, ids: tuple[int, ...], dead: str | None, as_json: bool) -> None:
    """Send deliveries again that arrived or were given up.

    They are queued; `webhook deliver` sends them.
    """
    if bool(ids) == (dead is not None):
        raise UsageError(
            "name deliveries by their ids, or give --dead NAME", hint="`reccocktail webhook log` has the ids"
        )
    with app.backend() as backend:
        found = backend.outbox.redeliver(ids or backend.outbox.dead(dead or ""))
    what = "1 delivery" if len(found) == 1 else f"{len(found):,} deliveries"
    message = f"{what} will be sent again by `reccocktail webhook deliver`"
    answer(as_json, [each.to_json() for each in found], lambda: say(message))


@webhook.command(epilog=example("reccocktail webhook deliver", "reccocktail webhook deliver --follow"))
@click.option("--follow", is_flag=True, help="Continue with what becomes due, until Ctrl-C or SIGTERM.")
@json_option
@pass_app
def deliver(app: App, follow: bool, as_json: bool) -> None:
    """Send what is due to webhooks.

    Any number of these may run at once. A failure is tried again after 10 s, 20 s, 40 s … up to 6 h, 15 times in all. Exit code 1 if something
    did not arrive. With --follow and --json, one JSON object per line.
    """
    from ..engine.building.stale_events import StaleWatch
    from ..registry.webhooks.delivery import Deliverer

    with app.registry() as registry:
        if follow:
            _follow(registry, as_json)
        StaleWatch(registry).look()
        deliverer = Deliverer(registry.outbox)
        done = []
        for each in deliverer.run():
            done.append(each)
            if not as_json:
                tell(_line(each))
    for name, why in deliverer.unsigned.items():
        warn(f"nothing is sent to {name}: {why}")
    answer(
        as_json,
        [each.to_json() for each in done],
        lambda: None if done or deliverer.unsigned else say("nothing is due"),
    )
    if deliverer.unsigned or any(each.error for each in done):
        raise click.exceptions.Exit(1)


def _follow(registry: Registry, as_json: bool) -> None:
    """Until a signal comes, which is how it ends."""
    from ..engine.building.stale_events import StaleWatch
    from ..registry.webhooks.delivery import Deliverer
    from ..registry.webhooks.following import follow

    def notify(done: Delivery) -> None:
        click.echo(json.dumps(done.to_json())) if as_json else tell(_line(done))

    try:
        follow(Deliverer(registry.outbox), notify, warn, look=StaleWatch(registry).look)
    except KeyboardInterrupt as error:
        is_term = isinstance(error, Stopped) and error.number == signal.SIGTERM
        raise click.exceptions.Exit(0 if is_term else exit_code(error)) from None


def _line(done: Delivery) -> str:
    what = f"{done.happened} {done.subject} to {done.webhook}"
    if done.error is None:
        return f"delivered: {what} ({done.status_code})"
    if done.retry_at is None:
        return f"given up: {what}, after {counted(done.attempts, 'attempt')}: {done.error}"
    return f"failed: {what}: {done.error}; again after {done.retry_at:%H:%M:%S} UTC"
