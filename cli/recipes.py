"""`recipe`: how adapters are combined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .app import example, json_option
from .console import answer, say, short, table


@click.group(epilog=example("reccocktail recipe show default"))
def recipe() -> None:
    """Recipes: how adapters are combined."""


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
    """Print a recipe with its defaults, as YAML."""
    import yaml

    from ..engine.recipes import load_recipe

    content = load_recipe(name).complete()
    answer(as_json, content, lambda: click.echo(yaml.safe_dump(content, sort_keys=False).rstrip()))


@recipe.command(epilog=example("reccocktail recipe check my.yaml"))
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Check a recipe file and print its digest."""
    from ..engine.recipes import load_recipe

    found = load_recipe(str(file))
    document = {"ok": True, "digest": found.digest, "recipe": found.to_json()}
    answer(as_json, document, lambda: say(f"{file} is a valid recipe: {short(found.digest)}"))


@recipe.command(epilog=example("reccocktail recipe methods"))
@json_option
def methods(as_json: bool) -> None:
    """List the merging methods and their options."""
    from ..engine.methods import METHODS, Method

    def described(method: Method) -> dict[str, Any]:
        schema = method.options.model_json_schema()
        return {
            "name": method.name,
            "summary": method.summary,
            "adapters": {"least": method.adapters[0], "most": method.adapters[1]},
            "coefficients": method.coefficients,
            "options": {
                name: {key: value for key, value in option.items() if key != "title"}
                | {"required": name in schema.get("required", [])}
                for name, option in schema.get("properties", {}).items()
            },
        }

    document = [described(method) for method in METHODS.values()]

    def show() -> None:
        rows = [[d["name"], ", ".join(map(_as_written, d["options"].items())), d["summary"]] for d in document]
        table(["name", "options", "what it does"], rows, empty="")
        every = {name: option for d in document for name, option in d["options"].items()}
        rows = [[name, _allowed(option), option["description"]] for name, option in every.items()]
        table(["name", "values", "what it says"], rows, empty="")

    answer(as_json, document, show)


def _as_written(option: tuple[str, dict[str, Any]]) -> str:
    name, schema = option
    default = schema.get("default")
    written = str(default).lower() if isinstance(default, bool) else default
    return name if schema["required"] else f"{name}={written}"


def _allowed(option: dict[str, Any]) -> str:
    """The values that an option's JSON schema lets through, as a person writes them."""
    if "enum" in option:
        return " | ".join(option["enum"])
    if option["type"] == "boolean":
        return "true | false"
    bounds = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    limits = [f"{sign} {option[key]:g}" for key, sign in bounds.items() if key in option]
    return f"{option['type']} {', '.join(limits)}".rstrip()
