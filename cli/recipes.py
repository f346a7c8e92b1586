"""`recipe`: how adapters are combined."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .app import example, json_option
from .console import answer, say, short, table


@click.group(epilog=example("reccocktail recipe show default"))
def recipe() -> None:
    """How adapters are combined."""


@recipe.command(name="list", epilog=example("reccocktail recipe list"))
@json_option
def list_(as_json: bool) -> None:
    """List the recipes that ship."""
    from ..engine.recipes import SHIPPED

    document = [{"name": n, "summary": text, "digest": r.digest} for n, (text, r) in SHIPPED.items()]
    rows = [[d["name"], d["summary"]] for d in document]
    answer(as_json, document, lambda: table(["name", "what it does"], rows, empty=""))


@recipe.command(epilog=example("reccocktail recipe show default > my.yaml"))
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Print a recipe, complete with its defaults, as YAML."""
    import yaml

    from ..engine.recipes import load_recipe

    content = load_recipe(name).to_json()
    answer(as_json, content, lambda: click.echo(yaml.safe_dump(content, sort_keys=False).rstrip()))


@recipe.command(epilog=example("reccocktail recipe check my.yaml"))
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Check a recipe file and print its digest."""
    from ..engine.recipes import load_recipe

    found = load_recipe(str(file))
    document = {"ok": True, "digest": found.digest, "recipe": json.loads(found.model_dump_json(exclude_none=True))}
    answer(as_json, document, lambda: say(f"{file} is a valid recipe: {short(found.digest)}"))
