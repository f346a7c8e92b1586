"""`build`: merged checkpoints and item indexes per domain."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..registry.catalog.references import INDEX
from ..registry.errors import ConflictError, LocalOnlyError, NotFoundError, RecCocktailError, UsageError
from .app import App, Interrupted, base_option, example, json_option, pass_app
from .build_table import means, show_builds
from .console import answer, counted, details, printable, progress, prose, say, stages, warn
from .evaluation_records import show_measured
from .lineage import lineage_lines
from .searches import show_search

if TYPE_CHECKING:
    from ..engine.building.asking import Due
    from ..engine.building.job import BuildOutcome, Progress
    from ..registry import Build, Request
    from ..registry.catalog.build_records import LogLine
    from .app import Backend

MUCH_LOST = 0.1
"""The share of a change lost to rounding from which a person is told what that means."""


@click.group(epilog=example("reccocktail build request beauty --wait"))
def build() -> None:
    """Builds: merged checkpoints or item indexes, per domain."""


@build.command(
    epilog=example(
        "reccocktail build request beauty --wait",
        "reccocktail build request beauty toys --recipe average",
        "reccocktail build request --stale --wait",
        "reccocktail build request shoes --adapter shoes@v3 --wait",
    )
)
@click.argument("domains", metavar="DOMAIN...", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="Every domain.")
@click.option("--stale", is_flag=True, help="Domains without a build of their present inputs.")
@click.option(
    "--recipe",
    "recipe_name",
    metavar="NAME_OR_FILE",
    help="Recipe: NAME, NAME@vN or a file; default: the domain's own, else `default`.",
)
@click.option("--adapter", metavar="REF", help="Build the item index of this bi-tuning instead of a merge.")
@click.option("--wait", is_flag=True, help="Run the builds now, in this process.")
@click.option("--force", is_flag=True, help="Build even if an equal build has succeeded.")
@click.option(
    "--keep-best", is_flag=True, help="With --wait: on Ctrl-C, stop the search and use the best coefficients so far."
)
@base_option
@json_option
@pass_app
def request(
    app: App,
    domains: tuple[str, ...],
    all_: bool,
    stale: bool,
    recipe_name: str | None,
    adapter: str | None,
    wait: bool,
    force: bool,
    keep_best: bool,
    base: str | None,
    as_json: bool,
) -> None:
    """Request merged builds, or item indexes. An equal build is not made twice.

    With --wait, builds over one base are made in one pass.

    The build of a bi-tuning (trainer `laser`) is the index of the domain's items: only new and changed items are embedded. It is what is
    built with --adapter, of a domain that has nothing to merge, and with --stale.

    With --all and --stale, domains that cannot be built are reported and skipped. Without --recipe, the command exits
    with 1 if one of them has been built before.
    """
    if sum((bool(domains), all_, stale)) != 1:
        raise UsageError("name domains, or use --all or --stale")
    if adapter is not None and (len(domains) != 1 or recipe_name):
        raise UsageError(
            "--adapter is for one domain, and an index has no recipe", hint="build request DOMAIN --adapter REF"
        )
    if keep_best and not wait:
        raise UsageError("--keep-best is for a build that runs here: add --wait")
    if keep_best and app.url is not None:
        raise LocalOnlyError.of("--keep-best", hint="leave it out: a worker of the server's makes the build")
    from ..engine.building.asking import BuildOrder, Due

    with app.backend() as backend:
        due = Due(domains) if domains else backend.builds_due(every=all_, recipe=recipe_name, base=base)
        _say_left_out(due)
        orders = [
            BuildOrder(name, recipe_name, adapter=adapter, base=base, force=force)
            for name in dict.fromkeys(due.domains)
        ]
        orders += [BuildOrder(ref.partition("@")[0], adapter=ref, base=on, force=force) for ref, on in due.indexes]
        asked = []
        for order in orders:
            answered = backend.request_build(order)
            asked.append(answered.build)
            _say_requested(answered)
        if wait:
            asked = _carried_out(app, backend, asked, keep_best=keep_best)
    show_builds(asked, as_json, empty="nothing to build")
    if due.held_up or (wait and any(row.status != "succeeded" for row in asked)):
        raise click.exceptions.Exit(1)


def _carried_out(app: App, backend: Backend, asked: Sequence[Build], *, keep_best: bool) -> list[Build]:
    """Raises Interrupted where a server goes on with what was asked for."""
    open_ = {row.id for row in asked if row.status in ("queued", "running")}
    try:
        if len(asked) == 1:
            done = carry_out(backend, asked[0], keep_best=keep_best)
            say(f"build {done.id} of {done.domain} is in {done.path or 'the store'}")
            return [done]
        return carry_out_all(backend, asked, keep_best=keep_best, ended=open_.discard) if asked else []
    except KeyboardInterrupt as error:
        if app.url is None or not open_:
            raise
        ids = [row.id for row in asked if row.id in open_]
        goes_on = f"build {ids[0]} goes on" if len(ids) == 1 else f"builds {', '.join(ids)} go on"
        raise Interrupted(
            f"`reccocktail build cancel {' '.join(ids)}` ends {'it' if len(ids) == 1 else 'them'}",
            error,
            state=f"{goes_on} at the server",
        ) from error


def _say_left_out(due: Due) -> None:
    """Which domains no build is requested of, and why."""
    for name, reasons in due.blocked.items():
        warn(f"{name} cannot be built: {reasons}")
    for name, id_ in due.ready.items():
        say(f"{name} has build {id_} of what it has now; `reccocktail build promote {id_}`")
    for name, reasons in due.skipped.items():
        say(f"{name} is skipped: {reasons}; ask for it by name")


def _say_requested(answered: Request) -> None:
    from ..engine.building.labels import label_note

    build = answered.build
    if build.kind == INDEX:
        _say_index(answered)
    elif not answered.created:
        say(f"{build.domain}: build {build.id} has the same inputs and is {build.status}")
    elif note := label_note(build):
        warn(f"{build.domain}: {note}")


def _say_index(answered: Request) -> None:
    build, items = answered.build, answered.build.inputs["items"]
    if not answered.created:
        ref = build.inputs["adapters"][0]["ref"]
        say(f"{build.domain}: build {build.id} is the index of {ref} over the same items and is {build.status}")
    if items["untitled"]:
        say(f"{build.domain}: left out, for want of a title: {counted(items['untitled'], 'item')}")


def carry_out(backend: Backend, row: Build, *, keep_best: bool = False) -> Build:
    """Run a build here, or wait for the worker that has it, with progress. Raises what the build failed with."""
    from ..engine.building.completion import Reports

    done = backend.complete(row, keep_best=keep_best, reports=Reports(_bars, say, warn))
    _warn_of(done)
    return done


def carry_out_all(
    backend: Backend, rows: Sequence[Build], *, keep_best: bool = False, ended: Callable[[str], None] = lambda id_: None
) -> list[Build]:
    """Run several builds, those over one base in one pass; each is reported as it ends, a failure too, and the others still run.

    `ended` is told the id of each that is no longer open.
    """
    from ..engine.building.completion import Reports

    def report(outcome: BuildOutcome) -> None:
        done = outcome.build
        ended(done.id)
        if outcome.error is not None:
            warn(f"build {done.id} of {done.domain} failed: {outcome.error}")
            return
        _warn_of(done)
        say(f"build {done.id} of {done.domain} is in {done.path or 'the store'}")

    return backend.complete_all(rows, keep_best=keep_best, reports=Reports(_bars, say, warn, report))


@contextmanager
def _bars(builds: Sequence[Build]) -> Iterator[Progress]:
    from ..engine.building.job import UNITS

    with stages(f"build {builds[0].domain}" if len(builds) == 1 else f"{len(builds)} builds", UNITS) as bars:
        yield bars.update


def _warn_of(done: Build) -> None:
    for warning in (done.report or {}).get("warnings", ()):
        warn(f"warning: {done.domain}: {warning}")


@build.command(epilog=example("reccocktail build show 660d4"))
@click.argument("id_", metavar="ID|DOMAIN|DOMAIN@ALIAS")
@click.option("--follow", is_flag=True, help="Show progress until it finishes, then the build.")
@json_option
@pass_app
def show(app: App, id_: str, follow: bool, as_json: bool) -> None:
    """Show a build: inputs, coefficients, publications, evaluations.

    The first characters of its id are enough, or its last four or more.

    A domain means its newest build, DOMAIN@production the one that it serves.
    """
    with app.backend() as backend:
        row = named_build(backend, id_)
        if follow:
            _follow(backend, row.id)
            row = backend.builds.get(row.id)
        document = backend.describe_build(row)
        measured = [] if as_json else backend.evaluations_of_build(row)

    def show_all() -> None:
        _show_one(row, document)
        show_measured(measured, row.id)

    answer(as_json, document, show_all)


def _follow(backend: Backend, id_: str) -> None:
    """Bars of a build that runs anywhere, from what its worker notes in the row."""
    from ..engine.building.job import UNITS

    row = backend.builds.get(id_)
    shown: str | None = None
    with stages(f"build {row.domain}", UNITS) as bars, backend.patient():
        while row.status in ("queued", "running"):
            if row.stage and row.total:
                bars.update(row.stage, row.done, row.total)
            message = f"build {row.id} is {row.status}" + (f" with worker {row.worker}" if row.worker else "")
            if message != shown:
                say(message)
                shown = message
            time.sleep(1)
            row = backend.builds.get(id_)


def _show_one(row: Build, document: Mapping[str, Any]) -> None:
    from ..registry.catalog.collecting import request_options, result_is_gone

    if row.collected_at is not None:
        gone = result_is_gone(row.id, row.domain, request_options(row.inputs), row.collected_at)
        say(f"{gone}; {gone.hint}")
    lineage = document["lineage"]
    document = {name: value for name, value in document.items() if name not in ("lineage", "evaluations")}
    report = document.pop("report") or {}
    document["coefficients"] = means(document["coefficients"])
    if document["stage"] and document["total"]:
        document["stage"] += f", {document['done'] / document['total']:.0%}"
    for name in ("inputs", "recipe", "done", "total"):
        document.pop(name)
    details(document)
    click.echo("\nwhat went in:")
    for line in lineage_lines(lineage):
        click.echo(prose(line, stream=sys.stdout, lead="  ", indent="    "))
    for published in lineage["publications"]:
        tag = f", tag {published['tag']}" if published["tag"] else ""
        click.echo(printable(f"published: {published['repo']} at {published['revision']}{tag}"))
    if "adaptation" in report:
        show_search(report["adaptation"])
        for warning in report.get("warnings", ()):
            click.echo(printable(f"warning: {warning}"))
    if "index" in report:
        click.echo("")
        details(report["index"])
        for warning in report.get("warnings", ()):
            click.echo(printable(f"warning: {warning}"))
    if "merge" in report:
        click.echo("")
        details(report["merge"])
        if note := about_rounding(report["merge"], "`output: {dtype: float32}` in the recipe"):
            say(note)


def about_rounding(summary: Mapping[str, Any], remedy: str) -> str | None:
    """What the figure means and what can be done, where much of the adapters' change was lost."""
    lost = summary.get("median_lost_to_rounding", 0.0)
    if lost < MUCH_LOST:
        return None
    return (
        f"note: in half of the merged weights, {lost:.0%} or more of the adapters' change was lost when the results were rounded"
        f" to the result's data type. That is usual for small changes in bfloat16; {remedy} keeps them, in larger files"
    )


@build.command(epilog=example("reccocktail build logs 660d4", "reccocktail build logs 660d4 --follow"))
@click.argument("id_", metavar="ID|DOMAIN|DOMAIN@ALIAS")
@click.option("--follow", is_flag=True, help="Print new lines until the build finishes.")
@json_option
@pass_app
def logs(app: App, id_: str, follow: bool, as_json: bool) -> None:
    """Show the log of a build."""
    if follow and as_json:
        raise UsageError("--follow is for people, --json for programs: one of them")
    with app.backend() as backend:
        id_ = named_build(backend, id_).id
        lines = backend.builds.logs(id_)
        answer(as_json, [line.to_json() for line in lines], lambda: _show_lines(lines))
        with backend.patient():
            while follow and backend.builds.get(id_).status in ("queued", "running"):
                time.sleep(1)
                more = backend.builds.logs(id_, after=lines[-1].id if lines else 0)
                _show_lines(more)
                lines = more or lines


def _show_lines(lines: Sequence[LogLine]) -> None:
    for line in lines:
        click.echo(printable(f"{line.at:%Y-%m-%d %H:%M:%S}  {line.worker or ''}  {line.text}"))


@build.command(epilog=example("reccocktail build cancel 660d4", "reccocktail build cancel beauty toys"))
@click.argument("ids", metavar="ID|DOMAIN|DOMAIN@ALIAS...", nargs=-1, required=True)
@json_option
@pass_app
def cancel(app: App, ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel queued or running builds."""
    _for_each(app, ids, lambda backend, id_: backend.builds.cancel(id_), as_json)


@build.command(epilog=example("reccocktail build retry 660d4 660d5"))
@click.argument("ids", metavar="ID|DOMAIN|DOMAIN@ALIAS...", nargs=-1, required=True)
@json_option
@pass_app
def retry(app: App, ids: tuple[str, ...], as_json: bool) -> None:
    """Queue failed or cancelled builds again."""
    _for_each(app, ids, lambda backend, id_: backend.builds.retry(id_), as_json)


def _for_each(app: App, names: Sequence[str], change: Callable[[Backend, str], Build], as_json: bool) -> None:
    """Change each build that is named, and answer with it: one object for one name, a list for several.

    All names are resolved first. A build that refuses does not keep the others from their turn: of several, it is reported, and the exit code is 1.
    """
    changed, refused = [], 0
    with app.backend() as backend:
        rows = {row.id: row for row in (named_build(backend, name) for name in names)}
        for id_ in rows:
            try:
                changed.append(change(backend, id_))
            except ConflictError as error:
                if len(names) == 1:
                    raise
                warn(f"{error}")
                refused += 1

    def show_rows() -> None:
        for row in changed:
            say(f"build {row.id} is {row.status}")

    document = [row.to_json() for row in changed]
    answer(as_json, document if len(names) > 1 else document[0], show_rows)
    if refused:
        raise click.exceptions.Exit(1)


@build.command(epilog=example("reccocktail build export 660d4 ./merged"))
@click.argument("id_", metavar="ID|DOMAIN|DOMAIN@ALIAS")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@json_option
@pass_app
def export(app: App, id_: str, folder: Path, as_json: bool) -> None:
    """Copy a merged checkpoint, or an item index, into a new folder.

    For a domain, the build that `publish` would take."""
    with app.backend() as backend:
        row = named_build(backend, id_, to_serve=True)
        row.stored_digest(row.kind)  # before a folder is looked at
        target = new_folder(folder)
        backend.copy_build(row, target, storing=partial(progress, f"fetching {row.id}", unit="bytes"))
    answer(as_json, {"id": row.id, "path": str(target)}, lambda: say(f"build {row.id} is in {target}"))


def named_build(backend: Backend, text: str, *, to_serve: bool = False) -> Build:
    """The build with the id or alias, or with the only id that begins or ends so; else the newest of the domain of that name.

    `to_serve` means the one that the domain serves. Raises NotFoundError, UsageError where several ids begin so.
    """
    from ..engine.queries import BuildQuery

    try:
        return backend.builds.get(text)
    except NotFoundError as error:
        try:
            backend.domains.get(text)
        except RecCocktailError:
            raise error from None  # it is no domain either
    if to_serve:
        row, choice = backend.choose(text)
        say_chosen(text, row.id, choice)
        return row
    newest = backend.list_builds(BuildQuery(domain=text), limit=1)
    if not newest:
        raise NotFoundError(f"domain {text!r} has no build yet", hint=f"reccocktail build request {text} --wait")
    say(f"the newest build of {text} is {newest[0].id}")
    return newest[0]


def say_chosen(domain: str, build: str, choice: Mapping[str, Any]) -> None:
    """Which build a domain means, and why that one, as `describe_choice` has it."""
    say(f"{domain} means build {build}: {choice['why']}")
    if choice["state"] != "fresh":
        say(f"build {build} is not of what {domain} has now ({choice['state']}: {', '.join(choice['reasons'])})")
    if choice["ready"] is not None:
        say(f"build {choice['ready']} is, and is not served; `reccocktail build promote {choice['ready']}`")
    if choice["trial"] is not None:
        say(
            f"build {choice['trial']} is newer but by another recipe than the domain's own, so it does not represent the domain"
        )


def new_folder(folder: Path) -> Path:
    """The absolute path of a folder that is not there or is empty. Raises ConflictError, UsageError."""
    target = folder.expanduser().absolute()
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if target.exists() or target.is_symlink():
        raise ConflictError(f"{target} exists and is not an empty folder", hint="name a new folder")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a folder")
    return target
