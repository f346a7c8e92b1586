"""`adapter edit`, `domain edit`, `base edit`, `build edit`, and renaming and removing: what people may change later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from ..registry.errors import UsageError
from .adapters import adapter, key_values, number
from .app import App, base_option, example, json_option, pass_app
from .bases import base as base_group
from .builds import build
from .console import answer, say
from .domains import domain

if TYPE_CHECKING:
    from ..registry.catalog.annotations import Edit
    from ..registry.catalog.records import Record

_OPTIONS = (
    click.option("--tag", "tags", metavar="T", multiple=True, help="Add this tag; repeat it for several."),
    click.option("--untag", metavar="T", multiple=True, help="Remove this tag."),
    click.option("--note", metavar="S", help="Replace the note by this text."),
    click.option("--no-note", is_flag=True, help="Remove the note."),
    click.option("--description", metavar="S", help="Replace the description by this text."),
    click.option("--no-description", is_flag=True, help="Remove the description."),
    click.option("--link", "links", metavar="NAME=URL", multiple=True, help="Set this link, such as run=https://…"),
    click.option("--unlink", metavar="NAME", multiple=True, help="Remove this link."),
    click.option("--metric", "metrics", metavar="K=V", multiple=True, help="Set this metric."),
    click.option("--unmetric", metavar="K", multiple=True, help="Remove this metric."),
)


def edit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of all edits; the function takes what they say as `given`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def _change(given: Mapping[str, Any]) -> Edit:
    """What the options ask for. Raises UsageError where they ask for nothing, or for two things of one text."""
    from ..registry.catalog.annotations import Edit

    texts: dict[str, str | None] = {}
    for name in ("note", "description"):
        if given[f"no_{name}"] and given[name] is not None:
            raise UsageError(f"--{name} replaces the {name}, and --no-{name} removes it: give one of them")
        texts[name] = "" if given[f"no_{name}"] else given[name]
    change = Edit(
        **texts,
        tags=given["tags"],
        untag=given["untag"],
        metrics={key: number(key, value) for key, value in key_values(given["metrics"], "--metric").items()},
        unmetric=given["unmetric"],
        links=key_values(given["links"], "--link"),
        unlink=given["unlink"],
    )
    if change == Edit(tags=(), untag=(), unmetric=(), unlink=()):
        raise UsageError("say what to change", hint="--tag, --untag, --note, --description, --link, --metric …")
    return change


def _report(row: Record, what: str, notes: tuple[str, ...], as_json: bool) -> None:
    for remark in notes:
        say(f"note: {remark}")
    document = row.to_json()
    answer(as_json, document | {"notes": list(notes)}, lambda: say(f"{what} is edited: {_brief(document)}"))


def _brief(document: Mapping[str, Any]) -> str:
    """What holds now, in a line."""
    parts = [
        f"tags {', '.join(document['tags']) or '-'}",
        *(f"{name}={value:g}" for name, value in document["metrics"].items()),
        *(f"{name}: {url}" for name, url in document["links"].items()),
        *(f"{name} {document[name]!r}" for name in ("note", "description") if document[name]),
    ]
    return "; ".join(parts)


@adapter.command(
    name="edit",
    epilog=example(
        "reccocktail adapter edit beauty@v3 --tag prod --untag nightly --metric NDCG@3=0.31",
        "reccocktail adapter edit beauty@champion --link run=https://mlflow.example.org/#/runs/7",
    ),
)
@click.argument("ref")
@edit_options
@base_option
@json_option
@pass_app
def edit_adapter(app: App, ref: str, base: str | None, as_json: bool, **given: Any) -> None:
    """Change tags, note, description, links, metrics.

    Weights and configuration of a version never change. `adapter log` shows who edited what.
    """
    change = _change(given)
    with app.backend() as backend:
        row = backend.edits.adapter(ref, change, base=base)
    _report(row, row.ref, row.notes, as_json)


@domain.command(
    name="edit",
    epilog=example("reccocktail domain edit beauty --tag team-a --link wiki=https://wiki.example.org/beauty"),
)
@click.argument("name")
@edit_options
@json_option
@pass_app
def edit_domain(app: App, name: str, as_json: bool, **given: Any) -> None:
    """Change tags, note, description, links, metrics.

    `domain add` changes title, data, trainer and recipe. `log --domain NAME` shows who edited what.
    """
    change = _change(given)
    with app.backend() as backend:
        row = backend.edits.domain(name, change)
    _report(row, row.name, row.notes, as_json)


@base_group.command(
    name="edit", epilog=example("reccocktail base edit smollm2 --tag approved --note 'License checked'")
)
@click.argument("name")
@edit_options
@json_option
@pass_app
def edit_base(app: App, name: str, as_json: bool, **given: Any) -> None:
    """Change tags, note, description, links, metrics.

    Weights and source never change. `log --kind base` shows who edited what.
    """
    change = _change(given)
    with app.backend() as backend:
        row = backend.edits.base(name, change)
    _report(row, row.name, row.notes, as_json)


@build.command(
    name="edit", epilog=example("reccocktail build edit 0654c2 --tag a-b-test --note 'Second arm of the test'")
)
@click.argument("build_id", metavar="BUILD")
@edit_options
@json_option
@pass_app
def edit_build(app: App, build_id: str, as_json: bool, **given: Any) -> None:
    """Change tags, note, description, links, metrics.

    The result of a build never changes. `log --kind build` shows who edited what.
    """
    change = _change(given)
    with app.backend() as backend:
        row = backend.edits.build(build_id, change)
    _report(row, row.id, row.notes, as_json)


@domain.command(epilog=example("reccocktail domain rename beauty cosmetics"))
@click.argument("name")
@click.argument("new")
@json_option
@pass_app
def rename(app: App, name: str, new: str, as_json: bool) -> None:
    """Rename a domain that no build refers to.

    Versions, aliases and log stay with it. Recipes that name the domain have to be changed by hand.
    """
    with app.backend() as backend:
        row = backend.domains.rename(name, new)
    answer(as_json, row.to_json(), lambda: say(f"{name} is called {row.name} now"))


@domain.command(name="remove", epilog=example("reccocktail domain remove beauty"))
@click.argument("name")
@json_option
@pass_app
def remove_domain(app: App, name: str, as_json: bool) -> None:
    """Remove a domain that has no adapter and no build.

    Its data folder stays. The name can be given again.
    """
    with app.backend() as backend:
        row = backend.domains.remove(name)
    answer(as_json, row.to_json(), lambda: say(f"{row.name} is removed"))


@base_group.command(name="remove", epilog=example("reccocktail base remove smollm2"))
@click.argument("name")
@json_option
@pass_app
def remove_base(app: App, name: str, as_json: bool) -> None:
    """Remove a base model that has no adapter and no build.

    `store gc` then frees the disk space. The name can be given again.
    """
    with app.backend() as backend:
        row = backend.bases.remove(name)
    where = ", where the registry is," if app.url else ""
    answer(as_json, row.to_json(), lambda: say(f"{row.name} is removed; `reccocktail store gc`{where} frees its files"))
