"""`completion`: a script that makes a shell complete commands, options, and the names that the registry has."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from .app import URL, example

Ask = Callable[[str, Mapping[str, str]], list[str]]
"""Answers a query, with named parameters, by its one column."""

MOST = 200  # names that are offered at once
SECONDS = 1.0  # how long a database is waited for
VARIABLE = "_RECCOCKTAIL_COMPLETE"
SHIPPED = ("default", "reccocktail", "molorec", "average", "spirit-only", "ingredient-only")

_DOMAINS = "SELECT name FROM domains WHERE role <> 'spirit' AND removed_at IS NULL AND name LIKE :start ORDER BY name"
_BASES = "SELECT name FROM base_models WHERE removed_at IS NULL AND name LIKE :start ORDER BY name"
_NAMES = "SELECT name FROM domains WHERE removed_at IS NULL AND name LIKE :start ORDER BY name"
_VERSIONS = """
    SELECT DISTINCT domains.name || '@v' || adapters.version FROM adapters JOIN domains ON domains.id = adapters.domain_id
    WHERE domains.name = :name AND domains.name || '@v' || adapters.version LIKE :start"""
_ALIASES = """
    SELECT DISTINCT domains.name || '@' || aliases.name FROM aliases JOIN domains ON domains.id = aliases.domain_id
    WHERE domains.name = :name AND domains.name || '@' || aliases.name LIKE :start"""
_ALIAS_NAMES = "SELECT DISTINCT name FROM aliases WHERE name LIKE :start ORDER BY name"
_BUILDS = "SELECT id FROM builds WHERE id LIKE :start ORDER BY id DESC"
_WEBHOOKS = "SELECT name FROM webhooks WHERE name LIKE :start ORDER BY name"
_RECIPES = "SELECT name FROM recipes WHERE kind = 'recipe' AND name LIKE :start ORDER BY name"

KINDS: dict[str, tuple[str, ...]] = {
    "domain": (_DOMAINS,),
    "base": (_BASES,),
    "reference": (_NAMES,),
    "build": (_BUILDS, _DOMAINS),
    "alias": (_ALIAS_NAMES,),
    "recipe": (_RECIPES,),
    "webhook": (_WEBHOOKS,),
}
"""What can be completed, and the queries that find it."""

_BY_NAME = {
    "domain": "domain", "domains": "domain", "base": "base", "base_name": "base", "ref": "reference", "other": "reference",
    "adapter": "reference", "id_": "build", "ids": "build", "build_id": "build", "alias": "alias", "aliases": "alias", "recipe": "recipe",
    "recipe_name": "recipe", "target": "reference", "reference": "reference",
}  # fmt: skip
_BY_PLACE = {
    ("domain", "name"): "domain", ("base", "name"): "base", ("adapter alias", "name"): "alias", ("recipe", "name"): "recipe",
    ("webhook", "name"): "webhook",
}  # fmt: skip


@click.command(
    epilog=example(
        "source <(reccocktail completion bash)",
        "source <(reccocktail completion zsh)",
        "reccocktail completion fish > ~/.config/fish/completions/reccocktail.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for a shell.

    It completes commands and options, and references, domains, base models, recipes, builds, aliases and webhooks of the registry. Put the line of
    the example into ~/.bashrc or ~/.zshrc.
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(click.Command("reccocktail"), {}, "reccocktail", VARIABLE).source())


def answer(group: click.Group) -> bool:
    """Answers a shell that asks for completions, and says whether one did. Nothing but completions is written, whatever goes wrong."""
    shell, _, what = os.environ.get(VARIABLE, "").partition("_")
    kind = get_completion_class(shell)
    if kind is None or what != "complete":
        return False
    _complete_names(group, ())
    with suppress(Exception):  # a shell that is being typed in is no place for an error
        click.echo(kind(group, {}, "reccocktail", VARIABLE).complete())
    return True


def _complete_names(command: click.Command, path: tuple[str, ...]) -> None:
    """Gives every parameter that takes a name of the registry the function that finds it."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            _complete_names(below, (*path, name))
        return
    adding = path[-1:] == ("add",)
    for parameter in command.params:
        name = parameter.name or ""
        places = (
            _BY_PLACE.get((" ".join(path), name)),
            _BY_PLACE.get((path[0], name)) if path and not adding else None,
        )
        kind = next(filter(None, places), None) or _BY_NAME.get(name)
        plain = type(parameter.type) is type(click.STRING)
        if kind and plain and not (adding and path[0] == kind and isinstance(parameter, click.Argument)):
            parameter._custom_shell_complete = _completing(kind)


def _completing(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(context: click.Context, _: click.Parameter, start: str) -> list[CompletionItem]:
        found = [name for name in SHIPPED if name.startswith(start)] if kind == "recipe" else []
        with suppress(Exception):
            found += _names(context, kind, start)
        return [CompletionItem(name) for name in dict.fromkeys(found)]

    return complete


def _names(context: click.Context, kind: str, start: str) -> Iterable[str]:
    """From the database, read only; nothing is made where none is, and none is waited for."""
    from ..registry.settings import Settings

    if os.environ.get(URL):
        return  # a server is not asked while somebody types
    name, at, _ = start.partition("@")
    queries = (_ALIASES, _VERSIONS) if kind == "reference" and at else KINDS[kind]
    given = context.find_root().params
    url = Settings.load(home=given.get("home"), database_url=given.get("database_url")).database_url
    ask = _sqlite(url) if url.startswith("sqlite") else _postgresql(url)
    if ask is None:
        return
    for query in queries:
        with suppress(Exception):  # a database of another version lacks a table
            yield from (
                text
                for text in ask(f"{query} LIMIT {MOST}", {"start": f"{start}%", "name": name})
                if text.startswith(start)
            )


# the drivers themselves: to import SQLAlchemy takes longer than a person wants to wait for a name


def _sqlite(url: str) -> Ask | None:
    import sqlite3

    path = Path(url.removeprefix("sqlite:///"))
    if not path.is_file():
        return None
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=SECONDS)
    return lambda query, given: [text for (text,) in connection.execute(query, given)]


def _postgresql(url: str) -> Ask | None:
    import psycopg

    plain = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)
    limit = f"-c statement_timeout={int(1000 * SECONDS)}"
    connection = psycopg.connect(plain, connect_timeout=max(2, int(SECONDS)), options=limit, autocommit=True)

    def ask(query: str, given: Mapping[str, str]) -> list[str]:
        return [text for (text,) in connection.execute(re.sub(r":(\w+)", r"%(\1)s", query).encode(), given)]

    return ask
