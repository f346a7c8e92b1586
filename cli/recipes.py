"""`recipe`: how adapters are combined."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..registry.errors import UsageError
from .adapters import key_values
from .app import App, example, json_option, pass_app
from .console import answer, say, short, table
from .recipe_versions import if_any, newest_two, show_added, show_difference, show_log

if TYPE_CHECKING:
    pass


@click.group(epilog=example("reccocktail recipe show default", "reccocktail recipe add house house.yaml"))
def recipe() -> None:
    """Recipes: how adapters are combined; versions of your own."""


@recipe.command(
    epilog=example(
        "reccocktail recipe show default > house.yaml", "reccocktail recipe add house house.yaml --note 'less spirit'"
    )
)
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--note", metavar="S", help="Why; kept with the version.")
@json_option
@pass_app
def add(app: App, name: str, file: Path, note: str | None, as_json: bool) -> None:
    """Add a recipe file as the next version of a recipe.

    A file that says what a version says already adds nothing. The registry keeps the content: the file may change or go.
    A prompt template that the recipe names by its path is read in, too.
    """
    with app.backend() as backend:
        added = backend.add_recipe(name, file.expanduser(), note=note, say=say)
        users = backend.recipes.users()
    show_added(added, users, as_json)


@recipe.command(name="list", epilog=example("reccocktail recipe list"))
@json_option
@pass_app
def list_(app: App, as_json: bool) -> None:
    """List recipes: yours, and those that ship."""
    from ..engine.documents import describe_recipes

    with if_any(app.backend) as backend:
        document = backend.describe_recipes() if backend else describe_recipes(None)
    rows = [[d["ref"], len(d["domains"]) or None, d["summary"]] for d in document]
    answer(as_json, document, lambda: table(["name", "domains", "what it does"], rows, right=("domains",), empty=""))


@recipe.command(epilog=example("reccocktail recipe show default > my.yaml", "reccocktail recipe show house@v2"))
@click.argument("name")
@json_option
@pass_app
def show(app: App, name: str, as_json: bool) -> None:
    """Print a recipe with its defaults, as YAML."""
    import yaml

    content = _found(app, name)
    answer(as_json, content, lambda: click.echo(yaml.safe_dump(content, sort_keys=False).rstrip()))


def _found(app: App, name: str) -> dict[str, Any]:
    """With its defaults, by its name, version or file; what ships and files need no registry."""
    from ..engine.recipe_book import is_file_name
    from ..engine.recipes import SHIPPED, load_recipe

    if name in SHIPPED or is_file_name(name):
        return load_recipe(name).complete()
    with app.backend() as backend:
        return backend.recipe(name)


@recipe.command(epilog=example("reccocktail recipe log house"))
@click.argument("name")
@json_option
@pass_app
def log(app: App, name: str, as_json: bool) -> None:
    """Show who changed a recipe, when and how.

    With the domains that use each version."""
    with app.backend() as backend:
        show_log(backend.recipes, name, as_json)


@recipe.command(
    epilog=example(
        "reccocktail recipe diff house",
        "reccocktail recipe diff house@v1 house@v3",
        "reccocktail recipe diff house new.yaml",
    )
)
@click.argument("before")
@click.argument("after", required=False)
@json_option
@pass_app
def diff(app: App, before: str, after: str | None, as_json: bool) -> None:
    """Show what differs between two recipes: names, versions or files.

    With one NAME: between its newest version and the one before.
    """
    if after is None:
        with app.backend() as backend:
            before, after = newest_two(backend.recipes, before)
    show_difference((before, after), _found(app, before), _found(app, after), as_json)


@recipe.command(epilog=example("reccocktail recipe check my.yaml"))
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Check a recipe file and print its digest."""
    from ..engine.recipes import load_recipe

    found = load_recipe(str(file))
    document = {"ok": True, "digest": found.digest, "recipe": found.to_json()}
    answer(as_json, document, lambda: say(f"{file} is a valid recipe: {short(found.digest)}"))


@recipe.command(
    name="import",
    epilog=example(
        "reccocktail recipe import mergekit.yaml > house.yaml",
        "reccocktail recipe import mergekit.yaml --role spirit=org/general --role ingredient=org/beauty --add house",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--role", "roles", metavar="ROLE=LORA", multiple=True, help="Which LoRA is what; default: spirit, then ingredient."
)
@click.option("--add", "name", metavar="NAME", help="Add it to the registry under this name.")
@json_option
@pass_app
def import_(app: App, file: Path, roles: tuple[str, ...], name: str | None, as_json: bool) -> None:
    """Turn a mergekit configuration into a recipe.

    The configuration has LoRAs on one base, BASE+LORA; the recipe is printed as YAML. A configuration that means something else is refused with the reason.
    """
    import yaml

    from ..engine.mergekit import read_mergekit
    from ..engine.recipe_book import keep_recipe, roles_of
    from ..engine.recipes import parse_recipe

    try:
        mix = read_mergekit(file.expanduser())
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    if mix is None:
        raise UsageError(f"{file} is no mergekit configuration", hint=f"`reccocktail recipe check {file}`")
    named = roles_of(mix.loras, key_values(roles, "--role"))
    found = parse_recipe(mix.recipe(named), where=str(file))
    say(f"base {mix.base}; {', '.join(f'{role} is {lora}' for role, lora in zip(named, mix.loras, strict=True))}")
    if name is not None:
        with app.registry() as registry:
            added = keep_recipe(registry, name, found, read_from=str(file.absolute()))
            users = registry.recipes.users()
        show_added(added, users, as_json)
        return
    content = found.to_json()
    answer(as_json, content, lambda: click.echo(yaml.safe_dump(content, sort_keys=False).rstrip()))


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
