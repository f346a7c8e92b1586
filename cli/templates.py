"""`template`: the words in which a model is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .app import App, example, json_option, pass_app
from .console import answer, say, table
from .recipe_versions import if_any, newest_two, show_added, show_difference, show_log


@click.group(epilog=example("reccocktail template show next-title > ours.yaml"))
def template() -> None:
    """Prompt templates: the words in which a model is asked."""


@template.command(epilog=example("reccocktail template add ours ours.yaml --note 'asks for one title'"))
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--note", metavar="S", help="Why; kept with the version.")
@json_option
@pass_app
def add(app: App, name: str, file: Path, note: str | None, as_json: bool) -> None:
    """Add a template file as the next version of a template.

    A file that says what a version says already adds nothing. Recipes name it as `template: NAME` and keep the version.
    """
    with app.backend() as backend:
        added = backend.add_template(name, file.expanduser(), note=note)
    if added.content["name"] != name:
        say(f"note: {file} has the name {added.content['name']!r}; recipes name it as {name!r}")
    show_added(added, {}, as_json)


@template.command(name="list", epilog=example("reccocktail template list"))
@json_option
@pass_app
def list_(app: App, as_json: bool) -> None:
    """List templates: yours, and those that ship."""
    from ..engine.documents import describe_templates

    with if_any(app.backend) as backend:
        document = backend.describe_templates() if backend else describe_templates(None)
    answer(as_json, document, lambda: table(["name", "note"], [[d["ref"], d["note"]] for d in document], empty=""))


@template.command(epilog=example("reccocktail template show next-title", "reccocktail template show ours@v1"))
@click.argument("name")
@json_option
@pass_app
def show(app: App, name: str, as_json: bool) -> None:
    """Print a template, as YAML."""
    import yaml

    content = _found(app, name)
    answer(as_json, content, lambda: click.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip()))


def _found(app: App, name: str) -> dict[str, Any]:
    from ..engine.recipe_book import is_file_name
    from ..tasks import load_template, shipped_templates

    if name in shipped_templates() or is_file_name(name):
        return load_template(name).model_dump(mode="json")
    with app.backend() as backend:
        return backend.template(name)


@template.command(epilog=example("reccocktail template log ours"))
@click.argument("name")
@json_option
@pass_app
def log(app: App, name: str, as_json: bool) -> None:
    """Show who changed a template, when and how."""
    with app.backend() as backend:
        show_log(backend.templates, name, as_json)


@template.command(epilog=example("reccocktail template diff ours", "reccocktail template diff next-title ours@v2"))
@click.argument("before")
@click.argument("after", required=False)
@json_option
@pass_app
def diff(app: App, before: str, after: str | None, as_json: bool) -> None:
    """Show what differs between two templates: names, versions or files.

    With one NAME: between its newest version and the one before.
    """
    if after is None:
        with app.backend() as backend:
            before, after = newest_two(backend.templates, before)
    show_difference((before, after), _found(app, before), _found(app, after), as_json)
