"""`build alias|promote|pin|policy|history` and `rollback`: which build a domain serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from ..registry.catalog.event_text import remark
from ..registry.errors import ConflictError, UsageError
from .app import App, base_option, example, json_option, pass_app
from .builds import build, named_build
from .console import NO_MORE, answer, details, page, say, table, tell, warn

if TYPE_CHECKING:
    from ..registry import Build
    from ..registry.catalog.serving import BuildAlias
    from .app import Backend

why_option = click.option("--why", metavar="TEXT", help="The reason, kept with the event.")


@build.command(
    epilog=example(
        "reccocktail build alias 660d4 shadow",
        "reccocktail build alias beauty@candidate shadow",
        "reccocktail build alias beauty@shadow --remove",
    )
)
@click.argument("id_", metavar="ID|DOMAIN@ALIAS")
@click.argument("name", required=False)
@click.option("--remove", is_flag=True, help="Delete the alias of DOMAIN@ALIAS.")
@click.option("--override", metavar="WHY", help="Delete it although the domain has a gate; the reason is recorded.")
@why_option
@base_option
@json_option
@pass_app
def alias(
    app: App,
    id_: str,
    name: str | None,
    remove: bool,
    override: str | None,
    why: str | None,
    base: str | None,
    as_json: bool,
) -> None:
    """Set, move or delete an alias of a build.

    Only a build that has succeeded takes one. `production`, or the alias that the domain names instead, is what is served.
    """
    if remove == (name is not None):
        raise UsageError(
            "give the alias to set, or --remove",
            hint="`reccocktail build alias ID NAME`, or `reccocktail build alias DOMAIN@ALIAS --remove`",
        )
    if remove and why is not None:
        raise UsageError("--why belongs to setting an alias")
    if override is not None and not remove:
        raise UsageError("--override belongs to --remove", hint='reccocktail build promote ID --override "why"')
    with app.backend() as backend:
        if name is None:
            found = backend.serving.remove(id_, base=base, override=override)
        else:
            found = backend.serving.alias(id_, name, base=base, why=why)
    has = "no longer has" if name is None else "has"
    message = f"build {found.build} {has} the alias {found.domain}@{found.alias}"
    answer(as_json, found.to_json(), lambda: say(message))


@build.command(epilog=example("reccocktail build promote beauty@candidate", "reccocktail build promote 660d4 660d5"))
@click.argument("ids", metavar="ID|DOMAIN@ALIAS...", nargs=-1, required=True)
@why_option
@click.option("--override", metavar="WHY", help="Promote although the domain's gate is closed; the reason is recorded.")
@base_option
@json_option
@pass_app
def promote(
    app: App, ids: tuple[str, ...], why: str | None, override: str | None, base: str | None, as_json: bool
) -> None:
    """Make builds what their domains serve.

    `resolve DOMAIN --merged`, `publish DOMAIN` and `status` then mean this build. `rollback DOMAIN` goes back.
    Where the domain has a gate (`reccocktail domain gate`), the build has to pass it.
    """
    from ..engine.recipe_book import DEFAULT

    with app.backend() as backend:
        rows = {row.id: row for row in (backend.builds.get(_id(backend, each, base)) for each in ids)}
        moved = [backend.promote(row, why=why, override=override) for row in rows.values()]
        for each in moved:
            if not (row := rows[each.build]).own_recipe:
                warn(_about_trial(row, backend.domains.get(row.domain).recipe or DEFAULT))
    document = [each.to_json() for each in moved]
    answer(as_json, document if len(ids) > 1 else document[0], lambda: _say_served(moved))


def _about_trial(row: Build, own: str) -> str:
    """That a build which is served now was not requested by its domain's own recipe, or before that was recorded."""
    by = f"by {row.recipe_ref}" if row.recipe_ref else "by a recipe without a name"
    if row.own_recipe is None:
        return f"build {row.id} was made {by}; that this was the own recipe of {row.domain} is not recorded (now it is {own})"
    return f"build {row.id}, which is served now, was made {by}, and the own recipe of {row.domain} is {own}"


def _say_served(moved: Sequence[BuildAlias]) -> None:
    for each in moved:
        say(f"{each.domain} serves build {each.build} ({each.alias}, base model {each.base})")


def _id(backend: Backend, text: str, base: str | None) -> str:
    return backend.serving.resolve(text, base=base).build if "@" in text else text


@build.command(epilog=example("reccocktail build pin 660d4 660d5", "reccocktail build pin 660d4 --undo"))
@click.argument("ids", metavar="ID|DOMAIN|DOMAIN@ALIAS...", nargs=-1, required=True)
@click.option("--undo", is_flag=True, help="End it.")
@json_option
@pass_app
def pin(app: App, ids: tuple[str, ...], undo: bool, as_json: bool) -> None:
    """Keep the files of builds for good.

    `store gc --builds-older-than` leaves them.
    """
    done, refused = [], 0
    with app.backend() as backend:
        for id_ in dict.fromkeys(named_build(backend, each).id for each in ids):
            try:
                done.append(backend.serving.pin(id_, undo=undo))
            except ConflictError as error:
                if len(ids) == 1:
                    raise
                warn(f"{error}")
                refused += 1
    document = [{"id": id_, "pinned": not undo} for id_ in done]

    def show() -> None:
        for id_ in done:
            say(f"build {id_} is {'no longer ' if undo else ''}pinned")

    answer(as_json, document if len(ids) > 1 else document[0], show)
    if refused:
        raise click.exceptions.Exit(1)


@build.command(epilog=example("reccocktail build policy beauty --promote automatic"))
@click.argument("domain")
@click.option("--alias", "name", metavar="NAME", help="Serve the build with this alias instead of `production`.")
@click.option("--promote", "promotes", type=click.Choice(["manual", "automatic"]), help="Who promotes new builds.")
@click.option(
    "--override", metavar="WHY", help="Serve that alias although the domain has a gate; the reason is recorded."
)
@json_option
@pass_app
def policy(app: App, domain: str, name: str | None, promotes: str | None, override: str | None, as_json: bool) -> None:
    """Show or change how a domain gets the build that it serves.

    manual: a build by the domain's own recipe becomes `candidate`, and `build promote` serves it. automatic: it is served as
    soon as it has succeeded. A build by another recipe is never served by itself.
    """
    if override is not None and name is None:
        raise UsageError("--override belongs to --alias")
    with app.backend() as backend:
        backend.domains.get(domain)
        if name is None and promotes is None:
            found = backend.serving.policy(domain)
        else:
            found = backend.serving.set_policy(domain, alias=name, promote=promotes, override=override)
    answer(as_json, found.to_json(), lambda: details(found.to_json()))


@build.command(epilog=example("reccocktail build history beauty", "reccocktail build history beauty@production --json"))
@click.argument("ref", metavar="DOMAIN[@ALIAS]")
@base_option
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option(
    "--after", type=click.IntRange(1), metavar="EVENT", help="Start after this entry: the last of the previous page."
)
@json_option
@pass_app
def history(app: App, ref: str, base: str | None, limit: int, after: int | None, as_json: bool) -> None:
    """Show which builds had which alias, newest first.

    DOMAIN: all aliases of its builds. DOMAIN@production: what was served, since when, and who decided it.
    """
    from ..registry.catalog.references import Reference

    name = Reference.parse(ref)
    if name.version is not None:
        raise UsageError(f"{ref!r} names an adapter", hint="write DOMAIN, or DOMAIN@ALIAS")
    with app.backend() as backend:
        found = backend.serving.history(name.name, alias=name.alias, base=base, limit=limit + 1, after=after)
    empty = f"no build of {ref} has had an alias" if after is None else NO_MORE

    def show() -> None:
        rows = [
            [f"{m.at:%Y-%m-%d %H:%M:%S}", m.by, m.alias, m.build or "nothing", remark(m) or None] for m in found[:limit]
        ]
        table(["when (UTC)", "who", "alias", "build", "why"], rows, empty=empty)
        page([move.event for move in found], limit)

    answer(as_json, [move.to_json() for move in found[:limit]], show)


@click.command(
    epilog=example(
        "reccocktail rollback beauty --dry-run",
        "reccocktail rollback beauty",
        "reccocktail rollback beauty --to 2026-11-28T09:00",
        "reccocktail rollback beauty --to 660d4",
    )
)
@click.argument("domain")
@click.option("--to", metavar="MOMENT|BUILD", help="A build, or what was served then (UTC).  [default: the one before]")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@why_option
@base_option
@json_option
@pass_app
def rollback(
    app: App, domain: str, to: str | None, dry_run: bool, why: str | None, base: str | None, as_json: bool
) -> None:
    """Serve an earlier build of a domain again.

    Shows what differs from the build that is served now, and what is out of date afterwards. What was published stays as it is.
    """
    with app.backend() as backend:
        document = backend.roll_back(domain, to, base=base, why=why, dry_run=dry_run)
        finished = None if as_json else backend.builds.get(document["to"]).finished_at
    answer(as_json, document, lambda: _show(document, finished))


def _show(planned: Mapping[str, Any], finished: datetime | None) -> None:
    domain, dry_run, state = planned["domain"], planned["dry_run"], planned["state"]
    if planned["from"] == planned["to"]:
        say(f"{domain} serves build {planned['to']} already: nothing to change")
        return
    when = f", finished {finished:%Y-%m-%d %H:%M} UTC" if finished else ""
    would = "would serve" if dry_run else "serves"
    say(f"{domain} {would} build {planned['to']}{when}, and not {planned['from']}")
    for change in planned["changes"]:
        tell(f"  {change}")
    if state != "fresh":
        reasons = f": {', '.join(planned['reasons'])}" if planned["reasons"] else ""
        tell(f"{domain} {'would be' if dry_run else 'is'} {state} then{reasons}")
    for repo in planned["publications"]:
        tell(f"{repo} {'would have' if dry_run else 'has'} another build than the one that is served")
    if planned["publications"] and not dry_run:
        say("`reccocktail publish --stale` publishes what is served")
    if dry_run:
        say("nothing was changed")
