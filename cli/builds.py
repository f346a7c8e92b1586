"""`build`: merged checkpoints and item indexes per domain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..registry.errors import ConflictError, NotFoundError, RecCocktailError, UsageError
from .app import App, base_option, example, json_option, pass_app
from .build_table import means, show_builds
from .console import answer, counted, details, printable, say, stages, warn
from .evaluation_records import show_measured
from .lineage import lineage_lines
from .searches import show_search

if TYPE_CHECKING:
    from ..engine.building.freshness import Freshness
    from ..engine.building.job import BuildOutcome, Progress
    from ..registry import Adapter, Build, Registry, Request
    from ..registry.catalog.build_records import LogLine

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
    from ..engine.building.freshness import freshness_by_domain
    from ..engine.building.indexing import bi_tuning_of, has_only_bi_tunings, request_index, stale_indexes
    from ..engine.building.labels import label_note
    from ..engine.building.planning import request as ask
    from ..engine.recipe_book import find_recipe, own_recipe, recipe_ref

    held_up = False
    with app.registry() as registry:
        names = list(domains)
        given = find_recipe(registry, recipe_name) if recipe_name else None
        named = recipe_ref(registry, recipe_name) if recipe_name else None
        indexes = [each.adapter for each in stale_indexes(registry)] if stale and recipe_name is None else []
        if adapter is not None or (domains and recipe_name is None):
            indexes = [
                bi_tuning_of(registry, name, adapter, base)
                for name in domains
                if adapter is not None or has_only_bi_tunings(registry, name, base)
            ]
            names = [name for name in names if name not in {row.domain for row in indexes}]
        if not domains:
            states = freshness_by_domain(registry, base=base, recipe=given)
            for name, state in states.items():
                if state.state == "blocked" and not has_only_bi_tunings(registry, name, base):
                    warn(f"{name} cannot be built: {'; '.join(state.reasons)}")
                    held_up |= recipe_name is None and state.build is not None
                if state.state == "ready" and state.ready is not None and not all_:
                    say(
                        f"{name} has build {state.ready.id} of what it has now; `reccocktail build promote {state.ready.id}`"
                    )
                if state.state == "cold" or state.needs_data:
                    say(f"{name} is skipped: {'; '.join(state.reasons)}; ask for it by name")
            wanted = ("fresh", "ready", "stale", "unbuilt") if all_ else ("stale", "unbuilt")
            names = [name for name, state in states.items() if state.state in wanted and not state.needs_data]
        asked = []
        for name in names:
            recipe = given or own_recipe(registry, registry.domains.get(name).recipe)
            answered = ask(registry, name, recipe, base=base, force=force, named=named)
            asked.append(answered.build)
            if not answered.created:
                say(f"{name}: build {answered.build.id} has the same inputs and is {answered.build.status}")
            elif note := label_note(answered.build):
                warn(f"{name}: {note}")
        for row in indexes:
            answered = request_index(registry, row, force=force)
            asked.append(answered.build)
            _say_index(row, answered)
        if wait:
            if len(asked) == 1:
                asked = [carry_out(registry, asked[0], app.device(), keep_best=keep_best)]
                say(f"build {asked[0].id} of {asked[0].domain} is in {asked[0].path or 'the store'}")
            elif asked:
                asked = carry_out_all(registry, asked, app.device(), keep_best=keep_best)
    show_builds(asked, as_json, empty="nothing to build")
    if held_up or (wait and any(row.status != "succeeded" for row in asked)):
        raise click.exceptions.Exit(1)


def _say_index(row: Adapter, answered: Request) -> None:
    build, items = answered.build, answered.build.inputs["items"]
    if not answered.created:
        say(f"{row.domain}: build {build.id} is the index of {row.ref} over the same items and is {build.status}")
    if items["untitled"]:
        say(f"{row.domain}: left out, for want of a title: {counted(items['untitled'], 'item')}")


def carry_out(registry: Registry, row: Build, device: str, *, keep_best: bool = False) -> Build:
    """Run a build here, or wait for the worker that has it, with progress. Raises what the build failed with."""
    from ..engine.building.completion import Reports, complete

    reports = Reports(_bars, say, warn)
    done = complete(registry, row, device=device, keep_best=keep_best, reports=reports)
    _warn_of(done)
    return done


def carry_out_all(registry: Registry, rows: Sequence[Build], device: str, *, keep_best: bool = False) -> list[Build]:
    """Run several builds, those over one base in one pass; each is reported as it ends, a failure too, and the others still run."""
    from ..engine.building.completion import Reports, complete_all

    def ended(outcome: BuildOutcome) -> None:
        done = outcome.build
        if outcome.error is not None:
            warn(f"build {done.id} of {done.domain} failed: {outcome.error}")
            return
        _warn_of(done)
        say(f"build {done.id} of {done.domain} is in {done.path or 'the store'}")

    return complete_all(registry, rows, device=device, keep_best=keep_best, reports=Reports(_bars, say, warn, ended))


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
    from ..engine.documents import describe_build, evaluations_of_build

    with app.registry() as registry:
        row = named_build(registry, id_)
        if follow:
            _follow(registry, row.id)
            row = registry.builds.get(row.id)
        measured = evaluations_of_build(registry, row)
        document = describe_build(registry, row, measured)
        written = registry.edits.of_build(row.id).to_json()

    def show_all() -> None:
        _show_one(row, document["lineage"], written)
        show_measured(measured, row.id)

    answer(as_json, document, show_all)


def _follow(registry: Registry, id_: str) -> None:
    """Bars of a build that runs anywhere, from what its worker notes in the row."""
    from ..engine.building.job import UNITS

    row = registry.builds.get(id_)
    shown: str | None = None
    with stages(f"build {row.domain}", UNITS) as bars:
        while row.status in ("queued", "running"):
            if row.stage and row.total:
                bars.update(row.stage, row.done, row.total)
            message = f"build {row.id} is {row.status}" + (f" with worker {row.worker}" if row.worker else "")
            if message != shown:
                say(message)
                shown = message
            time.sleep(1)
            row = registry.builds.get(id_)


def _show_one(row: Build, lineage: dict[str, Any], written: dict[str, Any]) -> None:
    from ..registry.catalog.collecting import request_options, result_is_gone

    if row.collected_at is not None:
        gone = result_is_gone(row.id, row.domain, request_options(row.inputs), row.collected_at)
        say(f"{gone}; {gone.hint}")
    document = row.to_json() | written
    report = document.pop("report") or {}
    document["coefficients"] = means(document["coefficients"])
    if document["stage"] and document["total"]:
        document["stage"] += f", {document['done'] / document['total']:.0%}"
    for name in ("inputs", "recipe", "done", "total"):
        document.pop(name)
    details(document)
    click.echo("\nwhat went in:")
    for line in lineage_lines(lineage):
        click.echo(f"  {printable(line)}")
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
    with app.registry() as registry:
        id_ = named_build(registry, id_).id
        lines = registry.builds.logs(id_)
        answer(as_json, [line.to_json() for line in lines], lambda: _show_lines(lines))
        while follow and registry.builds.get(id_).status in ("queued", "running"):
            time.sleep(1)
            more = registry.builds.logs(id_, after=lines[-1].id if lines else 0)
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
    _for_each(app, ids, lambda registry, id_: registry.builds.cancel(id_), as_json)


@build.command(epilog=example("reccocktail build retry 660d4 660d5"))
@click.argument("ids", metavar="ID|DOMAIN|DOMAIN@ALIAS...", nargs=-1, required=True)
@json_option
@pass_app
def retry(app: App, ids: tuple[str, ...], as_json: bool) -> None:
    """Queue failed or cancelled builds again."""
    _for_each(app, ids, lambda registry, id_: registry.builds.retry(id_), as_json)


def _for_each(app: App, names: Sequence[str], change: Callable[[Registry, str], Build], as_json: bool) -> None:
    """Change each build that is named, and answer with it: one object for one name, a list for several.

    All names are resolved first. A build that refuses does not keep the others from their turn: of several, it is reported, and the exit code is 1.
    """
    changed, refused = [], 0
    with app.registry() as registry:
        rows = {row.id: row for row in (named_build(registry, name) for name in names)}
        for id_ in rows:
            try:
                changed.append(change(registry, id_))
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
    from ..engine.building.planning import result_folder
    from ..registry.store.files import copy_folder, whole_folder

    with app.registry() as registry:
        row = named_build(registry, id_, to_serve=True)
        source = result_folder(registry, row, row.kind)
        target = new_folder(folder)
        with whole_folder(target) as staged:
            copy_folder(source, staged)
    answer(as_json, {"id": row.id, "path": str(target)}, lambda: say(f"build {row.id} is in {target}"))


def named_build(registry: Registry, text: str, *, to_serve: bool = False) -> Build:
    """The build with the id or alias, or with the only id that begins or ends so; else the newest of the domain of that name.

    `to_serve` means the one that the domain serves. Raises NotFoundError, UsageError where several ids begin so.
    """
    from ..engine.building.freshness import chosen
    from ..registry.catalog.filters import BuildFilter

    try:
        return registry.builds.get(text)
    except NotFoundError as error:
        try:
            registry.domains.get(text)
        except RecCocktailError:
            raise error from None  # it is no domain either
    if to_serve:
        found = chosen(registry, text)
        assert found.build is not None
        say_chosen(text, found)
        return found.build
    newest = registry.builds.list(BuildFilter(domain=text), limit=1)
    if not newest:
        raise NotFoundError(f"domain {text!r} has no build yet", hint=f"reccocktail build request {text} --wait")
    say(f"the newest build of {text} is {newest[0].id}")
    return newest[0]


def say_chosen(domain: str, found: Freshness) -> None:
    """Which build a domain means, and why that one."""
    assert found.build is not None
    say(f"{domain} means build {found.build.id}: {found.why}")
    if found.state != "fresh":
        say(f"build {found.build.id} is not of what {domain} has now ({found.state}: {', '.join(found.reasons)})")
    if found.ready is not None:
        say(f"build {found.ready.id} is, and is not served; `reccocktail build promote {found.ready.id}`")
    if found.trial is not None:
        say(
            f"build {found.trial.id} is newer but by another recipe than the domain's own, so it does not represent the domain"
        )


def about_choice(found: Freshness) -> dict[str, Any]:
    """The same for programs."""
    return {
        "state": found.state,
        "reasons": list(found.reasons),
        "why": found.why,
        "served": found.served and found.served.to_json(),
        "ready": found.ready.id if found.ready else None,
        "trial": found.trial.id if found.trial else None,
    }


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
