"""`log`: who did what in the registry, and when."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..registry.catalog.event_text import brief_pairs
from ..registry.errors import UsageError
from ..registry.signals import Stopped, exit_code
from .app import App, example, json_option, pass_app
from .console import NO_MORE, answer, page, say, table, tell

if TYPE_CHECKING:
    from ..registry import Event

SECONDS = 1.0  # between two looks for new events
LIMIT, BEFORE = 50, 10  # past events that are shown: alone, and before the new ones
KINDS = (
    "adapter, alias, base, build, domain, webhook, or whole kinds such as alias.moved, build.failed, build.published"
)


@click.command(
    epilog=example(
        "reccocktail log --domain beauty",
        "reccocktail log --kind alias --since 2026-11-01",
        "reccocktail log --follow --json",
    )
)
@click.option("--domain", metavar="D", help="Only this domain's; spirit: the base spirit's.")
@click.option("--actor", metavar="NAME", help="Only what this user did.")
@click.option("--kind", metavar="KIND", help=f"Only events of this kind: {KINDS}.")
@click.option("--since", metavar="MOMENT", help="Only from this moment or day (UTC) on.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), help=f"How many past events.  [default: {LIMIT}; {BEFORE} with --follow]"
)
@click.option(
    "--after", type=click.IntRange(1), metavar="ID", help="Start after this entry: the last of the previous page."
)
@click.option("--follow", is_flag=True, help="Show the last events, then new ones as they come, until Ctrl-C.")
@json_option
@pass_app
def log(app: App, limit: int | None, after: int | None, follow: bool, as_json: bool, **wanted: Any) -> None:
    """Show who did what, newest first.

    With --follow, oldest first, and with --json too one JSON object per line, for there is no end.
    """
    if follow and after is not None:
        raise UsageError("--after is a page of the past, and --follow is about what comes: one of them")
    from ..engine.queries import EventQuery

    query = EventQuery(**wanted)
    with app.backend() as backend:
        if follow:
            try:
                _follow(backend.follow_events(query, limit or BEFORE), _write_json if as_json else _write_lines)
            except Stopped:
                raise
            except KeyboardInterrupt as error:  # how it ends
                raise click.exceptions.Exit(exit_code(error)) from None
        limit = limit or LIMIT
        found = backend.list_events(query, limit=limit + 1, after=after)
    rows = [[f"{e.created_at:%Y-%m-%d %H:%M:%S}", e.created_by, _what(e)] for e in found[:limit]]

    def show_rows() -> None:
        columns = ["when (UTC)", "who", "what"]
        table(columns, rows, empty="there is no such event" if after is None else NO_MORE)
        page([event.id for event in found], limit)

    answer(as_json, [event.to_json() for event in found[:limit]], show_rows)


def _what(event: Event) -> str:
    """`alias.moved beauty@champion: beauty@v1 → beauty@v2`, in one column: five of them would have room for few words each."""
    return ": ".join(filter(None, [f"{event.kind} {event.subject}", brief_pairs(event)]))


def _follow(looks: Iterator[Sequence[Event]], write: Callable[[Sequence[Event]], None]) -> None:
    """What each look finds, the first of which is at the past, until the process is interrupted."""
    if not (first := next(looks)):
        say("no such event yet")
    write(first)
    for found in looks:
        write(found)


def _write_json(events: Sequence[Event]) -> None:
    for event in events:
        click.echo(json.dumps(event.to_json()))


def _write_lines(events: Sequence[Event]) -> None:
    for e in events:
        tell(f"{e.created_at:%Y-%m-%d %H:%M:%S}  {e.created_by}  {_what(e)}")
