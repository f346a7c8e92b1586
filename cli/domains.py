"""`domain`: what is recommended in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..registry.catalog.content_changes import in_words
from ..registry.errors import RecCocktailError, UsageError
from ..registry.store.trees import is_tree
from .app import App, example, json_option, pass_app
from .console import answer, counted, details, say, short, table, warn
from .gate_text import asked

if TYPE_CHECKING:
    from ..registry import Domain, Registry
    from ..registry.catalog.gates import Gate
    from ..tasks import DataFacts
    from ..trainers.domains import Registered


@click.group(epilog=example("reccocktail domain list"))
def domain() -> None:
    """Domains: the data, trainer and recipe of each shop."""


@domain.command(
    epilog=example(
        "reccocktail domain add beauty --title Beauty --data ./data/beauty",
        "reccocktail domain add second-hand-books --from-plugin bookshop",
    )
)
@click.argument("name")
@click.option("--title", metavar="T", help="Display name.")
@click.option(
    "--data", metavar="DIR", type=click.Path(path_type=Path), help="Folder with a data set (formats: docs/data.md)."
)
@click.option("--trainer", metavar="T", help="Trainer plugin for this domain's ingredients.")
@click.option("--recipe", metavar="R", help="Recipe for its builds: NAME, NAME@vN, or a file, which is read in.")
@click.option("--from-plugin", "plugin", metavar="P", help="Take title, data and recipe from this trainer plugin.")
@json_option
@pass_app
def add(
    app: App,
    name: str,
    title: str | None,
    data: Path | None,
    trainer: str | None,
    recipe: str | None,
    plugin: str | None,
    as_json: bool,
) -> None:
    """Add a domain, or change the given fields of one that is there.

    Reports what changed, and what was found in its data. Read that before you train on them.
    """
    if plugin is not None and (data is not None or trainer is not None):
        raise UsageError("--from-plugin brings data and trainer: leave --data and --trainer out")
    if plugin is not None:
        row, found = _add_from_plugin(app, plugin, name, title, recipe)
    else:
        from ..api.orders import NewDomain

        with app.backend() as backend:
            row, found = backend.add_domain(NewDomain(name, title, data, trainer, recipe), say=say)
    if found is not None:
        for line in facts_lines(found):
            say(line)
    if title is not None and row.title != title:
        warn("the title was kept without what looks like a secret")
    document = row.to_json() | {"created": row.created, "changed": list(row.changed)}
    document |= {"found": asdict(found)} if found else {}
    answer(as_json, document, lambda: _say_what_became(row))


def _say_what_became(row: Domain) -> None:
    if row.created:
        say(f"domain {row.name} is registered")
    elif not row.changed:
        say(f"domain {row.name} was there already, and nothing changed")
    else:
        say(f"domain {row.name} was there already, and is changed:")
        for change in row.changed:
            say(f"  {in_words(change)}")
        if any(change["key"] == "data" for change in row.changed):
            say(f"hint: `reccocktail status {row.name}` shows whether its build is of other data now")


def _add_from_plugin(
    app: App, plugin: str, name: str, title: str | None, recipe: str | None
) -> tuple[Domain, DataFacts]:
    from ..engine.recipe_book import settle_recipe
    from ..trainers.domains import find_domain, register
    from ..trainers.plugin import load

    with app.registry() as registry:
        trainer = load(plugin)
        brought = find_domain(trainer, name)
        settle = partial(settle_recipe, registry, say=say)
        done = register(registry, trainer, brought, settle_recipe=settle, title=title, recipe=recipe, take_over=True)
    return done.domain, done.facts


def facts_lines(found: DataFacts) -> list[str]:
    """What a person should know about data: what is there, what was left out, and what deserves a second thought."""
    lines = [
        f"found {found.format}: {counted(found.users, 'user')}, {counted(found.items, 'item')},"
        f" {counted(found.interactions, 'interaction')}{_period(found)}"
    ]
    passed = {
        "interactions without a user": found.without_user,
        "interactions that the filters drop": found.dropped,
        "further records of an item": found.duplicates,
        "records of items without interactions": found.unused,
    }
    if any(passed.values()):
        lines.append("left out: " + ", ".join(f"{n:,} {what}" for what, n in passed.items() if n))
    return lines + [f"note: {remark}" for remark in _remarks(found)]


def _remarks(found: DataFacts) -> Iterator[str]:
    """The last column of docs/data.md's table of facts, where it applies."""
    if found.time_units:
        counts = ", ".join(f"{number:,} in {unit}" for unit, number in found.time_units.items())
        yield f"the times are in mixed units: {counts}; all were turned into {list(found.time_units)[-1]}, and ordered by that"
    if found.without_user > 0.05 * (found.interactions + found.without_user):
        yield f"{_share(found.without_user, found.interactions + found.without_user)} of the interactions have no user"
    if found.respelled_ids:
        yield f"{counted(found.respelled_ids, 'id')} written like 12.0 read as the id 12"
    if found.without_rating:
        yield f"{_share(found.without_rating, found.interactions)} of the interactions have no rating where others have one"
    if found.missing_titles > 0.05 * found.items:
        yield f"{_share(found.missing_titles, found.items)} of the items have no title; they are never shown or offered"
    if found.unlisted:
        yield f"{counted(found.unlisted, 'item')} taken but without a record: do both files write ids in the same way?"
    if found.too_short > 0.5 * found.users:
        yield (
            f"{_share(found.too_short, found.users)} of the users have fewer than three titled items,"
            " so no training example"
        )
    if found.repeats > 0.2 * found.interactions:
        yield f"{_share(found.repeats, found.interactions)} of the interactions repeat an item; the next item may be a known one"
    if not found.users:
        yield (
            "there is a catalogue and no user: nothing can be trained or measured on it; a recipe with"
            " `objective: agreement` mixes what other domains have learned"
        )
    elif found.never_taken > 0.2 * found.items:
        yield (
            f"{_share(found.never_taken, found.items)} of the items have no interactions and are easy to distinguish from"
            " the right answer; `core: 1` in dataset.yaml leaves them out"
        )
    if found.first_time is None and found.interactions:
        yield "there are no times: the order of the rows is taken as the order in time"


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.0%})"


def _period(found: DataFacts) -> str:
    if found.first_time is None or found.last_time is None:
        return ""
    first, last = _days(found.first_time, found.last_time)
    return f", from {first} to {last}"


def _days(first: float, last: float) -> tuple[str, str]:
    """Days, if there is one unit in which both can only mean times since 1970; else the numbers."""
    for per_second in (1, 10**3, 10**6, 10**9):
        years = [1970 + time / per_second / 31_557_600 for time in (first, last)]
        if 1990 <= years[1] < 2100 and (years[0] >= 1971 or 1900 <= years[0] < 1969):
            epoch = datetime(1970, 1, 1, tzinfo=UTC)  # dates before it are no timestamps on every system
            days = [epoch + timedelta(seconds=time // per_second) for time in (first, last)]
            return f"{days[0]:%Y-%m-%d}", f"{days[1]:%Y-%m-%d}"
    return f"{first:.15g}", f"{last:.15g}"


@domain.command(epilog=example("reccocktail domain sync", "reccocktail domain sync bookshop --json"))
@click.argument("plugin", metavar="[PLUGIN]", required=False)
@json_option
@pass_app
def sync(app: App, plugin: str | None, as_json: bool) -> None:
    """Register or update the domains of trainer plugins.

    Running it twice changes nothing. A domain that fails is reported, the others are registered, and the command exits with 1.
    """
    from ..trainers.plugin import installed, load

    names = [plugin] if plugin is not None else list(installed())
    if plugin is not None:
        load(plugin)
    with app.registry() as registry:
        outcomes = [outcome for name in names for outcome in _synced(registry, name)]

    def show_outcomes() -> None:
        rows = [
            [o["domain"], o["plugin"], o["state"], o["error"]["message"] if o["error"] else _brief(o["found"])]
            for o in outcomes
        ]
        table(["domain", "plugin", "state", "data"], rows, empty="no plugin brings a domain")

    answer(as_json, outcomes, show_outcomes)
    if any(outcome["error"] for outcome in outcomes):
        raise click.exceptions.Exit(1)


def _synced(registry: Registry, plugin: str) -> Iterator[dict[str, Any]]:
    from ..engine.recipe_book import settle_recipe
    from ..trainers.domains import register
    from ..trainers.plugin import domains_of, load

    def outcome(name: str | None, done: Registered | None, error: RecCocktailError | None) -> dict[str, Any]:
        return {
            "plugin": plugin,
            "domain": name,
            "state": done.state if done else "failed",
            "found": asdict(done.facts) if done else None,
            "error": error and {"code": error.code, "message": str(error), "hint": error.hint},
        }

    try:
        trainer = load(plugin)
        brought = domains_of(trainer)
    except RecCocktailError as error:
        yield outcome(None, None, error)
        return
    settle = partial(settle_recipe, registry, say=say)
    for each in brought:
        try:
            yield outcome(each.name, register(registry, trainer, each, settle_recipe=settle), None)
        except RecCocktailError as error:
            yield outcome(each.name, None, error)


def _brief(found: dict[str, Any]) -> str:
    return ", ".join(counted(found[f"{what}s"], what) for what in ("user", "item", "interaction"))


def _place(data: str | None) -> str | None:
    """Where a domain's data lie, in a table's width: what was uploaded is in the store."""
    return f"in the store, {short(data)}" if data is not None and is_tree(data) else data


def _gate(gate: Gate | None) -> str:
    return "none" if gate is None else f"v{gate.version}: {asked(gate.require, gate.approvals)}"


@domain.command(name="list", epilog=example("reccocktail domain list"))
@json_option
@pass_app
def list_(app: App, as_json: bool) -> None:
    """List the domains."""
    with app.backend() as backend:
        domains = backend.domains.list()
    rows = [[d.name, d.title, d.trainer or "sft", d.recipe or "default", _place(d.data)] for d in domains]
    answer(
        as_json,
        [d.to_json() for d in domains],
        lambda: table(
            ["name", "title", "trainer", "recipe", "data"],
            rows,
            spare=("trainer", "recipe", "title"),
            empty="no domain yet; `reccocktail domain add NAME --data DIR`",
        ),
    )


@domain.command(epilog=example("reccocktail domain show beauty"))
@click.argument("name")
@json_option
@pass_app
def show(app: App, name: str, as_json: bool) -> None:
    """Show a domain, what is in its data, and what it uses.

    Where it has no trainer or recipe of its own, those that are taken then.
    """
    from ..tasks import TaskError

    with app.backend() as backend:
        row = backend.domains.get(name)
        gate = None if as_json else backend.gates.get(name)
        try:
            found = backend.data_facts(row)
        except TaskError as error:
            found = None
            warn(f"the data of {name} cannot be read here: {error}")

    def show_row() -> None:
        used = {"trainer": row.trainer or "sft", "recipe": row.recipe or "default"}
        details(row.to_json() | used | {"data": _place(row.data), "gate": _gate(gate)})
        for line in facts_lines(found) if found else ():
            click.echo(line)

    answer(as_json, row.to_json() | {"found": found and asdict(found)}, show_row)
