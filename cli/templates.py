"""`template`: the words in which a model is asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .app import App, example, json_option, pass_app
from .console import answer, table
from .recipe_versions import if_any, newest_two, show_added, show_difference, show_log

if TYPE_CHECKING:
    from ..tasks import Template


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
    from ..engine.recipe_book import add_template

    with app.registry() as registry:
        added = add_template(registry, name, file.expanduser(), note=note)
    show_added(added, {}, as_json)


@template.command(name="list", epilog=example("reccocktail template list"))
@json_option
@pass_app
def list_(app: App, as_json: bool) -> None:
    """List templates: yours, and those that ship."""
    from ..tasks import load_template, shipped_templates

    with if_any(app.registry) as registry:
        own = registry.templates.list() if registry else []
    document = [{"name": v.name, "ref": v.ref, "note": v.note, "digest": v.digest} for v in own]
    document += [
        {"name": name, "ref": name, "note": "ships", "digest": load_template(name).digest}
        for name in shipped_templates()
    ]
    answer(as_json, document, lambda: table(["name", "note"], [[d["ref"], d["note"]] for d in document], empty=""))


@template.command(epilog=example("reccocktail template show next-title", "reccocktail template show ours@v1"))
@click.argument("name")
@json_option
@pass_app
def show(app: App, name: str, as_json: bool) -> None:
    """Print a template, as YAML."""
    import yaml

    content = _found(app, name).model_dump(mode="json")
    answer(as_json, content, lambda: click.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip()))


def _found(app: App, name: str) -> Template:
    from ..engine.recipe_book import find_template, is_file_name
    from ..tasks import load_template, shipped_templates

    if name in shipped_templates() or is_file_name(name):
        return load_template(name)
    with app.registry() as registry:
        return find_template(registry, name)


@template.command(epilog=example("reccocktail template log ours"))
@click.argument("name")
@json_option
@pass_app
def log(app: App, name: str, as_json: bool) -> None:
    """Show who changed a template, when and how."""
    with app.registry() as registry:
        show_log(registry.templates, name, as_json)


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
        with app.registry() as registry:
            before, after = newest_two(registry.templates, before)
    one, other = _found(app, before), _found(app, after)
    show_difference((before, after), one.model_dump(mode="json"), other.model_dump(mode="json"), as_json)
