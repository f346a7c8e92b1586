"""`status`: what is built, published, under way and out of date, per domain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..registry.errors import UsageError
from ..registry.moments import moment
from .app import App, example, json_option, pass_app
from .console import answer, say, table, tell
from .evaluation_records import figure
from .gate_text import asked
from .status_screen import fits, grouped, summary, with_names

if TYPE_CHECKING:
    from ..registry.catalog.evaluations import EvaluationRecord

STATES = ("fresh", "ready", "stale", "unbuilt", "cold", "blocked", "failed")
TROUBLED = ("stale", "blocked", "failed")


@click.command(
    epilog=example(
        "reccocktail status",
        "reccocktail status beauty --json",
        "reccocktail status --check --state stale",
        "reccocktail status --at 2026-11-28",
    )
)
@click.argument("domain", required=False)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(STATES),
    help="Only domains in this state; failed: whose newest build failed. Repeat it for several.",
)
@click.option(
    "--at", metavar="MOMENT", help="Which builds were served at this moment, or at the end of this day (UTC)."
)
@click.option("--check", is_flag=True, help="Exit with 1 if a domain is stale or blocked, or its newest build failed.")
@json_option
@pass_app
def status(app: App, domain: str | None, states: tuple[str, ...], at: str | None, check: bool, as_json: bool) -> None:
    """Show what is served, published and out of date, per domain."""
    if at is not None:
        if states or check:
            raise UsageError("--at is about the past, and --state and --check about now: one of them")
        _show_past(app, at, domain, as_json)
        return
    with app.backend() as backend:
        document = backend.status(domain, states)
        every = [] if domain is None or as_json else _measured(backend.evaluations.get, document)
    empty = "no domain yet; `reccocktail domain add NAME`" if not states else "no domain is in that state"
    answer(as_json, document, lambda: _show(document, empty, None if domain is None else every))
    if check and any(_is_troubled(entry) for entry in document):
        raise click.exceptions.Exit(1)


def _show_past(app: App, at: str, domain: str | None, as_json: bool) -> None:
    """What was served then, since when, and who had decided it."""
    when = moment(at)
    with app.backend() as backend:
        found = backend.serving.served_at(when, domain)

    def show() -> None:
        rows = [[m.domain, m.base, m.alias, m.build, f"{m.at:%Y-%m-%d %H:%M:%S}", m.by] for m in found]
        columns = ["domain", "base", "alias", "build", "since (UTC)", "by"]
        table(columns, rows, empty=f"no build was served at {when:%Y-%m-%d %H:%M:%S} UTC", spare=("alias", "base"))

    answer(as_json, [move.to_json() for move in found], show)


def _figure(measured: Mapping[str, Any]) -> str | None:
    """`NDCG@3=0.412` of what is served, else `NDCG@3=0.412 (LoRA)` of the champion alone."""
    for each, mark in ((measured["served"], ""), (measured["champion"], " (LoRA)")):
        if each is not None and each["figure"] is not None:
            return f"{measured['metric']}={each['figure']['mean']:.3f}{mark}"
    return None


def _is_troubled(entry: Mapping[str, Any]) -> bool:
    return entry["state"] in TROUBLED or entry["failed"] is not None


def _measured(
    get: Callable[[int], EvaluationRecord], document: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, EvaluationRecord]]:
    """What was measured of each domain's champion and of what it serves, and by which metric it counts."""
    return [
        (what, entry["measured"]["metric"], get(entry["measured"][what]["id"]))
        for entry in document
        for what in ("champion", "served")
        if entry["measured"][what] is not None
    ]


def _show_every(measured: Sequence[tuple[str, str, EvaluationRecord]]) -> None:
    """All metrics, that which counts first."""
    rows = [
        [what, row.label, name, figure(row, name), row.users, row.id, f"{row.created_at:%Y-%m-%d}"]
        for what, metric, row in measured
        for name in sorted(row.metrics, key=lambda name: name != metric)
    ]
    if rows:
        columns = ["", "system", "metric", "mean", "users", "evaluation", "created"]
        table(columns, rows, empty="", right=("users",), spare=("created", "evaluation", "system"))


def _show(
    document: Sequence[Mapping[str, Any]],
    empty: str,
    measured: Sequence[tuple[str, str, EvaluationRecord]] | None = None,
) -> None:
    """`measured` of one domain alone."""
    columns = ["domain", "spirit", "ingredient", "build", "state", "measured", "published"]
    rows = [[_version_alone(e[c]) if c in columns[1:3] else e[c] for c in columns] for e in document]
    for row, entry in zip(rows, document, strict=True):
        row[5] = _figure(entry["measured"])
        if entry["publication"] == "stale":
            row[-1] = f"{row[-1]} (stale)"
    lines = [*_reasons(document), *grouped(document, lambda entry: _remarks([entry]))]
    if fits(len(rows), lines):
        table(columns, rows, empty=empty, spare=("published", "measured", "build", "spirit", "ingredient"))
    else:
        columns = ["domains", "state", "spirit", "builds", "which"]
        table(columns, summary(document), empty=empty, right=("domains",), cut=("which",))
        say(f"({len(rows)} domains, grouped to fit the screen: `status NAME`, --state or a pipe show each)")
    for line in lines:
        tell(line)
    if measured is None:
        return
    for entry in document:
        if gate := entry["gate"]:
            tell(f"{entry['domain']} has gate v{gate['version']}: {asked(gate['require'], gate['approvals'])}")
        for index in entry["indexes"]:
            where = f"build {index['build']}" if index["build"] else "the bundle"
            tell(f"{index['adapter']} answers by the index in {where}, which is {index['state']}")
    if document:
        _show_every(measured)


def _reasons(document: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Why domains are not fresh, those with the same reasons together."""
    alike: dict[tuple[str, str], list[str]] = {}
    for entry in document:
        if entry["reasons"]:
            alike.setdefault((entry["state"], "; ".join(entry["reasons"])), []).append(entry["domain"])
    for (state, reasons), names in alike.items():
        if len(names) == 1:
            yield f"{names[0]} is {state}: {reasons}"
        else:
            yield with_names(f"{len(names)} are {state}: {reasons}", names)


def _remarks(document: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for entry in document:
        name = entry["domain"]
        for build in entry["pending"]:
            stage = (
                f", {build['stage']} {build['done'] / build['total']:.0%}" if build["stage"] and build["total"] else ""
            )
            yield f"{name}: build {build['id']} is {build['status']}{stage}"
        for index in entry["indexes"]:
            if index["state"] == "stale":
                yield f"{name}: `reccocktail build request {name} --adapter {index['adapter']}` builds the index anew"
        if entry["failed"]:
            error = entry["failed"]["error"].get("message", "")
            yield f"{name}: its newest build {entry['failed']['id']} failed: {error}"
        if entry["outcome"] == "parent":
            yield f"{name}: build {entry['build']} is one adapter alone, for no mix was shown to be as good"
        if entry["ready"]:
            yield (
                f"{name}: build {entry['ready']} is of what it has now, and is not served;"
                f" `reccocktail build promote {entry['ready']}`"
            )
        if entry["trial"]:
            yield f"{name}: build {entry['trial']}, the newest, is by another recipe than the domain's own"
        if (behind := entry["behind"]) is not None:
            yield (
                f"{name} was published to {behind['repo']} as build {behind['build']}, and it serves build {behind['serves']};"
                " `reccocktail publish --stale`"
            )


def _version_alone(ref: str | None) -> str | None:
    """`v3` of `beauty@v3`: the table has the name already, and 80 columns are few."""
    return ref and ref.partition("@")[2]
