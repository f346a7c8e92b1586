"""`train` and `trainers`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..registry.catalog.references import BI_TUNING, PERSONALISED_LORA
from ..registry.errors import UsageError
from .adapters import key_values, report_added
from .app import App, Interrupted, base_option, example, json_option, pass_app
from .console import answer, counted, progress, say, table, tell, warn

if TYPE_CHECKING:
    from ..registry import Adapter, Base, Build, Registry
    from ..trainers.launch import Launch
    from ..trainers.runs import TrainingRequest


@click.command(
    epilog=example(
        "reccocktail train beauty -o epochs=4 -o learning_rate=2e-4",
        "reccocktail train beauty -o template=ours@v2 --run https://wandb.ai/team/beauty/runs/1a2b",
        "reccocktail train shoes --trainer laser --on shoes@production",
        "reccocktail train --spirit --domains pets,kitchen,garden --resume",
    )
)
@click.argument("domain", required=False)
@click.option("--spirit", is_flag=True, help="Train the base spirit on several domains.")
@click.option("--domains", metavar="A,B", help="The domains that a spirit is trained on.")
@click.option("--trainer", "trainer_name", metavar="NAME", help="Trainer plugin; default: the domain's, else sft.")
@click.option("-o", "options", metavar="K=V", multiple=True, help="Option of the trainer; see `trainers show NAME`.")
@click.option("--resume", is_flag=True, help="Resume from the last checkpoint of the same run, or take its result.")
@click.option(
    "--restart", is_flag=True, help="Start over, and discard the checkpoints of an unfinished run of the same request."
)
@click.option(
    "--stall-timeout",
    metavar="MINUTES",
    type=click.FloatRange(min=0),
    default=30,
    show_default=True,
    envvar="RECCOCKTAIL_STALL_TIMEOUT",
    show_envvar=True,
    help="Stop a trainer that reports no progress for so long; 0 means never.",
)
@click.option(
    "--on",
    "build",
    metavar="BUILD",
    help="Train a bi-tuning on this build's checkpoint instead of the base model: an id, or DOMAIN@ALIAS. It is pinned.",
)
@click.option("--tag", "tags", metavar="T", multiple=True, help="Tag to store with the version.")
@click.option("--note", metavar="S", help="Free text to store with the version.")
@click.option("--alias", "aliases", metavar="NAME", multiple=True, help="Alias to set, or to move to the version.")
@click.option(
    "--source", "code", metavar="URL", help="Code that it was made with; default: git's commit and remote here."
)
@click.option("--run", "run_url", metavar="URL", help="Run that made it; default: that of MLflow's or W&B's variables.")
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
    restart: bool,
    stall_timeout: float,
    build: str | None,
    tags: tuple[str, ...],
    note: str | None,
    aliases: tuple[str, ...],
    code: str | None,
    run_url: str | None,
    base: str | None,
    as_json: bool,
) -> None:
    """Train an adapter and register it.

    An ingredient is trained on one domain's data, a spirit (--spirit) on several.

    An interrupted training is resumed with --resume; without it, the same request is refused as long as its checkpoints are there.

    The trainer runs in a process of its own. Under `accelerate launch` each of the processes is one; the first registers.
    """
    if spirit and (domain is not None or not domains):
        raise UsageError("a spirit is trained on several domains", hint="reccocktail train --spirit --domains a,b")
    if resume and restart:
        raise UsageError("--resume continues an unfinished run, and --restart discards it: give one of them")
    if not spirit and (domain is None or domains is not None):
        raise UsageError("name one DOMAIN, or --spirit with --domains", hint="reccocktail train beauty")
    from ..registry.artifacts.provenance import made_by
    from ..registry.catalog.registration import Labels
    from ..trainers.launch import Launch
    from ..trainers.plugin import load, parse_options
    from ..trainers.runs import TrainingRequest, expect_trainable_on

    labels = Labels(tags=tags, note=note, aliases=aliases, context=made_by(code, run_url))
    labels.checked()  # before hours of training
    launch = Launch.current()
    if launch is not None and launch.rank:
        os.dup2(2, 1)  # one answer to a launch, so one process that says anything on stdout
    with app.registry() as registry:
        names = [name.strip() for name in domains.split(",")] if domains else [str(domain)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"--domains names {', '.join(twice)} more than once")
        rows = [registry.domains.get(name) for name in names]
        trainer = load(trainer_name or (None if spirit else rows[0].trainer) or "sft")
        on = None if build is None else registry.builds.get(build)
        given, typed = _with_template(registry, key_values(options, "-o"))
        request = TrainingRequest(
            trainer,
            rows,
            role="spirit" if spirit else "ingredient",
            base=_base(registry, base, on),
            on=on,
            options=parse_options(trainer, given),
            typed=typed,
            resume=resume,
            restart=restart,
            device=app.device(),
            labels=labels,
        )
        if on is not None:
            expect_trainable_on(request, on)
            registry.serving.pin(on.id)
            say(f"build {on.id} is pinned, for the bi-tuning will need its checkpoint")
        try:
            row = _trained(registry, request, launch, 60 * stall_timeout or None)
        except KeyboardInterrupt as error:
            raise Interrupted(
                "run the same command with --resume to continue from the last checkpoint", error
            ) from None
        folder = None if row is None else registry.store.local(row.digest)
    if row is not None:
        report_added(row, as_json)
        for line in _came_of_it(row, folder):
            say(line)


def _came_of_it(row: Adapter, folder: Path | None) -> Iterator[str]:
    """How well it went, by how many steps, where it lies, and what comes next."""
    told = [
        f"{name} {value:.4g}"
        for name, value in sorted(row.metrics.items(), key=lambda each: "validation" not in each[0])
    ]
    steps, kept = row.context.get("steps"), row.context.get("kept_step")
    if isinstance(steps, int):
        told.append(f"{counted(steps, 'step')}" + (f", kept is step {kept}" if isinstance(kept, int) else ""))
    if told:
        yield ", ".join(told)
    if folder is not None:
        yield f"files: {folder}"
    yield from (f"next: `reccocktail {command}`" for command in _next(row))


def _next(row: Adapter) -> list[str]:
    if row.domain is None or row.role == "spirit":
        return ["train DOMAIN", "status"]
    if row.kind == BI_TUNING:
        return [
            f"recommend {row.domain} --user USER --adapter {row.ref}",
            f"evaluate {row.ref} --domain {row.domain} --task full",
        ]
    if row.kind == PERSONALISED_LORA:
        written = (
            [] if row.context.get("bundle", {}).get("target_dependent") else [f"personalise {row.ref} USER -o DIR"]
        )
        return [*written, f"recommend {row.domain} --user USER --adapter {row.ref}"]
    return [f"build request {row.domain} --wait", f"evaluate {row.ref} --domain {row.domain}"]


def _base(registry: Registry, name: str | None, on: Build | None) -> Base:
    """The base model that is named, else that of the build that is trained on, else the only one."""
    if name is None and on is not None:
        name = on.base
    return registry.bases.get(name) if name else registry.bases.only()


def _with_template(registry: Registry, options: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The options, with a file for a template of the registry; and its version, to be recorded instead."""
    from ..engine.recipe_book import template_file

    kept = template_file(registry, options["template"]) if "template" in options else None
    if kept is None:
        return options, {}
    path, ref = kept
    return options | {"template": str(path)}, {"template": ref}


def _trained(
    registry: Registry, request: TrainingRequest, launch: Launch | None, stall_seconds: float | None
) -> Adapter | None:
    """The adapter; None in all processes of a launch but the first."""
    from ..registry.catalog.lookup import CALLED
    from ..trainers.child import in_a_child
    from ..trainers.plugin import LORA, kind_of
    from ..trainers.runs import in_this_process, take_part, train_and_register

    if launch is not None and launch.rank:
        take_part(registry, request, launch=launch, wait_seconds=stall_seconds)
        return None
    kind = kind_of(request.trainer)
    what = request.role if kind == LORA else CALLED[kind]
    with progress(f"training {what}", unit="steps") as bar:

        def step(done: int, total: int, figures: Mapping[str, float]) -> None:
            bar.update(done, total, _note(figures))

        carry_out = in_a_child(stall_seconds) if launch is None else in_this_process
        return train_and_register(registry, request, progress=step, carry_out=carry_out, launch=launch)


NOTES = {
    "loss": "loss {:.3f}",
    "recommender": "recommender {:.0%}",
    "items_embedded": "{:.0f} items embedded",
    "users_validated": "{:.0f} users validated",
}


def _note(figures: Mapping[str, float]) -> str:
    """What stands behind the steps: the loss, or which stage without one is how far."""
    return next((text.format(figures[name]) for name, text in NOTES.items() if name in figures), "")


def _type(spec: Mapping[str, Any]) -> str:
    """A JSON schema's type in a word or two; a reference to a type of its own is left to --json."""
    return spec.get("type") or " or ".join(part.get("type", "…") for part in spec.get("anyOf", ())) or "…"


@click.group(epilog=example("reccocktail trainers show sft"))
def trainers() -> None:
    """Trainer plugins and their options."""


@trainers.command(name="list", epilog=example("reccocktail trainers list"))
@json_option
def list_(as_json: bool) -> None:
    """List installed trainers, and why one is broken."""
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
    """Show a trainer, its options and domains."""
    from ..trainers.plugin import TrainerError, domains_of, load

    trainer = load(name)
    schema = trainer.Options.model_json_schema()
    rows = [
        [
            key,
            _type(spec),
            spec.get("default"),
            spec.get("description", ""),
        ]
        for key, spec in schema.get("properties", {}).items()
    ]
    try:
        brought, broken = domains_of(trainer), None
    except TrainerError as error:
        brought, broken = (), str(error)
    domains = [
        {
            "name": each.name,
            "title": each.title,
            "recipe": None if each.recipe is None else str(each.recipe),
            "data": str(each.data) if isinstance(each.data, Path) else None,
        }
        for each in brought
    ]
    document = {"name": trainer.name, "summary": trainer.summary, "options": schema, "domains": domains}

    def show_all() -> None:
        tell(f"{trainer.name}: {trainer.summary}")
        table(["option", "type", "default", "meaning"], rows, empty="it takes no options")
        if domains:
            cells = [[d["name"], d["title"], d["recipe"] or "default", d["data"] or "made by it"] for d in domains]
            table(["domain", "title", "recipe", "data"], cells, empty="")
            say(f"(`reccocktail domain sync {trainer.name}` registers these domains)")
        if broken:
            warn(f"its domains cannot be listed: {broken}")

    answer(as_json, document | {"domains_error": broken}, show_all)
