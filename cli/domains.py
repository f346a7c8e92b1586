"""`domain`: what is recommended in."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from .app import App, example, json_option, pass_app
from .console import answer, details, say, table


@click.group(epilog=example("reccocktail domain list"))
def domain() -> None:
    """What is recommended in: its data, trainer and recipe."""


@domain.command(epilog=example("reccocktail domain add beauty --title Beauty --data ./data/beauty"))
@click.argument("name")
@click.option("--title", metavar="T", help="What people call it.")
@click.option("--data", metavar="DIR", type=click.Path(path_type=Path), help="Folder with items and sequences.")
@click.option("--trainer", metavar="T", help="Trainer plugin for its ingredients.")
@click.option("--recipe", metavar="R", help="Recipe of its builds: a name or a file.")
@json_option
@pass_app
def add(
    app: App, name: str, title: str | None, data: Path | None, trainer: str | None, recipe: str | None, as_json: bool
) -> None:
    """Add a domain, or change what is given of one that is there."""
    from ..engine.recipes import SHIPPED, load_recipe
    from ..tasks import describe, read_domain
    from ..trainers.plugin import load

    found = None
    if data is not None:
        data = data.expanduser().resolve()
        found = describe(read_domain(data, name))
    if trainer is not None:
        load(trainer)
    if recipe is not None:
        load_recipe(recipe)
        recipe = recipe if recipe in SHIPPED else str(Path(recipe).expanduser().resolve())
    with app.registry() as registry:
        row = registry.domains.add(name, title=title, data=str(data) if data else None, trainer=trainer, recipe=recipe)
    if found is not None:
        say(
            f"found {found.users} users, {found.items} items, {found.interactions} interactions;"
            f" {found.missing_titles} items without a title, {found.repeats} repeats"
        )
    document = row.to_json() | ({"found": asdict(found)} if found else {})
    answer(as_json, document, lambda: say(f"domain {row.name} is registered"))


@domain.command(name="list", epilog=example("reccocktail domain list"))
@json_option
@pass_app
def list_(app: App, as_json: bool) -> None:
    """List the domains."""
    with app.registry() as registry:
        domains = registry.domains.list()
    rows = [[d.name, d.title, d.trainer or "sft", d.recipe or "default", d.data] for d in domains]
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
    """Show a domain."""
    with app.registry() as registry:
        row = registry.domains.get(name)
    answer(as_json, row.to_json(), lambda: details(row.to_json()))
