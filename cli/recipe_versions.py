"""What the groups `recipe` and `template` have in common: versions of content, their list, their history, what differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..registry.catalog.content_changes import differences, in_words
from ..registry.errors import UsageError
from .console import answer, printable, say, table

if TYPE_CHECKING:
    from ..api.remote_nouns import RemoteRecipes
    from ..registry.catalog.recipes import Recipes, RecipeVersion


T = TypeVar("T")


def show_added(added: RecipeVersion, users: Mapping[str, Sequence[str]], as_json: bool) -> None:
    """That a version was made or was there already, and which domains are on an older one."""
    older = [
        domain
        for ref, domains in users.items()
        if ref.partition("@")[0] == added.name and ref != added.ref
        for domain in domains
    ]

    def show() -> None:
        say(f"{'added' if added.created else 'the same as'} {added.ref}")
        if older:
            say(
                f"on another version of it: {', '.join(older)}; `reccocktail domain add DOMAIN --recipe {added.ref}` moves one"
            )

    answer(as_json, added.to_json() | {"created": added.created, "domains_on_other_versions": older}, show)


def show_log(kept: Recipes | RemoteRecipes, name: str, as_json: bool) -> None:
    """The versions, the newest first: who, when, and what each changed."""
    versions = kept.log(name)
    users = kept.users() if kept.kind == "recipe" else {}
    before = [*versions[1:], None]
    document = [
        version.to_json()
        | {
            "domains": users.get(version.ref, []),
            "changes": [] if older is None else differences(older.content, version.content),
        }
        for version, older in zip(versions, before, strict=True)
    ]
    rows = [
        [
            d["ref"],
            f"{version.created_at:%Y-%m-%d %H:%M}",
            d["created_by"],
            "; ".join(map(in_words, d["changes"])) or ("first version" if d["version"] == 1 else "nothing"),
            d["domains"] or None,
            d["note"],
        ]
        for d, version in zip(document, versions, strict=True)
    ]
    columns = ["name", "when (UTC)", "by", "what changed", "domains", "note"]
    if kept.kind == "template":
        columns, rows = [*columns[:4], "note"], [[*row[:4], row[5]] for row in rows]
    answer(as_json, document, lambda: table(columns, rows, spare=("note", "by"), empty=""))


def newest_two(kept: Recipes | RemoteRecipes, name: str) -> tuple[str, str]:
    """The version before the newest, and the newest. Raises UsageError where there is one alone."""
    versions = kept.log(name)
    if len(versions) < 2:
        raise UsageError(
            f"{versions[0].ref} is the only version of {kept.kind} {versions[0].name}",
            hint="name a second one to compare it with",
        )
    return versions[1].ref, versions[0].ref


def show_difference(names: tuple[str, str], before: Mapping[str, Any], after: Mapping[str, Any], as_json: bool) -> None:
    found = differences(before, after)

    def show() -> None:
        if not found:
            say(f"{names[0]} and {names[1]} say the same")
        for change in found:
            click.echo(printable(in_words(change)))

    answer(as_json, {"before": names[0], "after": names[1], "changes": found}, show)


def if_any(opened: Callable[[], AbstractContextManager[T]]) -> AbstractContextManager[T | None]:
    """What is opened, or None, which is reported, where there is no registry: what ships needs none."""
    from ..registry.errors import DatabaseError, StoreError

    try:
        return opened()
    except (DatabaseError, StoreError) as error:
        say(f"only what ships: {error}")
        return nullcontext()
