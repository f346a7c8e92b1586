"""`train` and `trainers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ..registry.errors import UsageError
from .adapters import key_values
from .app import App, Interrupted, base_option, example, json_option, pass_app
from .console import answer, printable, progress, say, table


@click.command(
    epilog=example(
        "reccocktail train beauty -o epochs=4 -o learning_rate=2e-4",
        "reccocktail train --spirit --domains pets,kitchen,garden --resume",
    )
)
@click.argument("domain", required=False)
@click.option("--spirit", is_flag=True, help="Train the base spirit on several domains.")
@click.option("--domains", metavar="A,B", help="The domains that a spirit is trained on.")
@click.option("--trainer", "trainer_name", metavar="NAME", help="Trainer plugin; the domain's, else sft.")
@click.option("-o", "options", metavar="K=V", multiple=True, help="Option of the trainer; `trainers show NAME`.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of the same run, or take its result.")
@base_option
@json_option
@pass_app
def train(
    app: App,
    domain: str | None,
    spirit: bool,
    domains: str | None,
    trainer_name: str | None,
    options: tuple[str, ...],
    resume: bool,
    base: str | None,
    as_json: bool,
) -> None:
    """Train an adapter on a domain's data, or a spirit on several, and register it."""
    if spirit and (domain is not None or not domains):
        raise UsageError("a spirit is trained on several domains", hint="reccocktail train --spirit --domains a,b")
    if not spirit and (domain is None or domains is not None):
        raise UsageError("name one DOMAIN, or --spirit with --domains", hint="reccocktail train beauty")
    from ..trainers.plugin import load, parse_options
    from ..trainers.runs import train_and_register

    with app.registry() as registry:
        names = [name.strip() for name in domains.split(",")] if domains else [str(domain)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"--domains names {', '.join(twice)} more than once")
        rows = [registry.domains.get(name) for name in names]
        trainer = load(trainer_name or (None if spirit else rows[0].trainer) or "sft")
        parsed = parse_options(trainer, key_values(options, "-o"))
        base_row = registry.bases.get(base) if base else registry.bases.only()
        with progress(f"training {'spirit' if spirit else domain}", unit="steps") as update:

            def step(done: int, total: int, figures: Mapping[str, float]) -> None:
                update(done, total, f"loss {figures['loss']:.3f}" if "loss" in figures else "")

            try:
                row = train_and_register(
                    registry,
                    trainer,
                    rows,
                    role="spirit" if spirit else "ingredient",
                    base=base_row,
                    options=parsed,
                    resume=resume,
                    device=app.device(),
                    progress=step,
                )
            except KeyboardInterrupt:
                raise Interrupted("the same command with --resume goes on from the last checkpoint") from None
    answer(as_json, row.to_json(), lambda: say(f"{'registered' if row.created else 'already there'}: {row.ref}"))


def _type(spec: Mapping[str, Any]) -> str:
    """A JSON schema's type in a word or two; a reference to a type of its own is left to --json."""
    return spec.get("type") or " or ".join(part.get("type", "…") for part in spec.get("anyOf", ())) or "…"


@click.group(epilog=example("reccocktail trainers show sft"))
def trainers() -> None:
    """Trainer plugins."""


@trainers.command(name="list", epilog=example("reccocktail trainers list"))
@json_option
def list_(as_json: bool) -> None:
    """List installed trainers; a broken one is shown with its error."""
    from ..trainers.plugin import TrainerError, installed, load

    found = []
    for name, point in installed().items():
        try:
            found.append({"name": name, "object": point.value, "summary": load(name).summary, "error": None})
        except TrainerError as error:
            found.append({"name": name, "object": point.value, "summary": None, "error": str(error)})
    rows = [[f["name"], f["object"], f["summary"] or f["error"]] for f in found]
    answer(as_json, found, lambda: table(["name", "object", "summary"], rows, empty="no trainer is installed"))


@trainers.command(epilog=example("reccocktail trainers show sft"))
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a trainer and its options."""
    from ..trainers.plugin import load

    trainer = load(name)
    schema = trainer.Options.model_json_schema()
    rows = [
        [
            key,
            _type(spec),
            spec.get("default"),
            spec.get("description", ""),
        ]
        for key, spec in schema["properties"].items()
    ]

    def show_options() -> None:
        click.echo(printable(f"{trainer.name}: {trainer.summary}"))
        table(["option", "type", "default", "meaning"], rows, empty="it takes no options")

    answer(as_json, {"name": trainer.name, "summary": trainer.summary, "options": schema}, show_options)
