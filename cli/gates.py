"""`domain gate`, `adapter approve` and `build approve`: what has to be shown before something is promoted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..registry.errors import GateError, NotFoundError, UsageError
from .adapters import adapter, key_values
from .app import App, base_option, example, json_option, pass_app
from .builds import build, named_build
from .console import answer, details, say, table, warn
from .domains import domain
from .gate_text import asked

if TYPE_CHECKING:
    from ..registry.catalog.gates import Gate
    from .app import Backend


@domain.command(
    epilog=example(
        "reccocktail domain gate beauty --require metric=NDCG@3,against=champion,margin=0.02,confidence=0.95",
        "reccocktail domain gate beauty gate.yaml",
        "reccocktail domain gate beauty --approvals 1",
        "reccocktail domain gate beauty --log",
        "reccocktail domain gate beauty --remove",
    )
)
@click.argument("name", metavar="DOMAIN")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option(
    "--require",
    metavar="KEY=VALUE,...",
    help="metric; against: champion (default) or parents; margin: how much lower it may be (0; a negative one asks for so much"
    " more); confidence (0.95); split (test).",
)
@click.option(
    "--approvals", type=click.IntRange(0, 20), help="How many others than who registered it have to approve it."
)
@click.option("--remove", is_flag=True, help="Remove the gate.")
@click.option("--log", is_flag=True, help="Show who set or removed it, when, and what it asked for; newest first.")
@json_option
@pass_app
def gate(
    app: App,
    name: str,
    file: Path | None,
    require: str | None,
    approvals: int | None,
    remove: bool,
    log: bool,
    as_json: bool,
) -> None:
    """Show, set or remove the gate of a domain (or of `spirit`).

    Through a gate, `champion` moves only to a version whose stored evaluation is good enough, and that others have approved if
    the gate says so. Until one is champion, the domain's name alone means no version. FILE is YAML with `require` and `approvals`. The gate is replaced as a whole.
    """
    if sum((file is not None, require is not None or approvals is not None, remove, log)) > 1:
        raise UsageError("give a file, or --require and --approvals, or --remove, or --log")
    if log:
        _show_log(app, name, as_json)
        return
    from ..engine.gates import policy_of
    from ..tasks.documents import read_yaml

    given: object = None
    if file is not None:
        try:
            given = read_yaml(file)
        except (OSError, ValueError) as error:
            raise UsageError(f"{file} cannot be read as YAML: {error}") from error
    elif require is not None or approvals is not None:
        wanted = None if require is None else key_values(tuple(require.split(",")), "--require")
        given = {"require": wanted, "approvals": approvals or 0}
    with app.backend() as backend:
        row = before = backend.gates.get(name)
        if remove:
            backend.gates.remove(name)
            row = None
        elif file is not None or given is not None:
            row = backend.gates.set(name, *policy_of(given))
        waits = None if row is None else _unmeant(backend, name)
    if before is not None and row is not None and (gone := _no_longer_asked(before, row)):
        warn(f"note: gate v{row.version} no longer asks for {gone}")
        warn("hint: a gate is replaced as a whole; give --require and --approvals together")
    if waits is not None:
        warn(f"note: {waits}")
        warn(f"hint: {waits.hint}")

    def show() -> None:
        if row is None:
            say(f"{name} has no gate" if before is None else f"gate v{before.version} of {name} is removed")
        else:
            details(row.to_json())

    answer(as_json, row and row.to_json(), show)


def _no_longer_asked(before: Gate, now: Gate) -> str:
    """What the gate that is replaced asked for and the new one does not; empty where it asks for no less."""
    return asked(
        before.require if before.require != now.require else None,
        before.approvals if before.approvals > now.approvals else 0,
    )


def _unmeant(backend: Backend, name: str) -> GateError | None:
    """Why the domain's bare name means nothing, where the gate is the reason."""
    try:
        backend.show_adapter(name)
    except GateError as error:
        return error
    except (NotFoundError, UsageError):  # it has no version yet, or several, each for another base model
        return None
    return None


def _show_log(app: App, name: str, as_json: bool) -> None:
    with app.backend() as backend:
        found = backend.gates.history(name)

    def show() -> None:
        rows = [
            [
                f"{each.at:%Y-%m-%d %H:%M:%S}",
                each.by,
                "removed" if each.version is None else f"v{each.version}",
                "nothing" if each.version is None else asked(each.require, each.approvals or 0),
            ]
            for each in found
        ]
        table(["when (UTC)", "who", "gate", "what it asks for"], rows, empty=f"{name} has had no gate")

    answer(as_json, [each.to_json() for each in found], show)


@adapter.command(name="approve", epilog=example("reccocktail adapter approve beauty@v3"))
@click.argument("ref")
@base_option
@json_option
@pass_app
def approve_adapter(app: App, ref: str, base: str | None, as_json: bool) -> None:
    """Approve a version that somebody else registered.

    A gate with `approvals` counts who has. An approval stays for good.
    """
    with app.backend() as backend:
        shown, names = backend.approve_adapter(ref, base=base)
    answer(as_json, {"ref": shown, "approved_by": names}, lambda: say(f"{shown} is approved by {', '.join(names)}"))


@build.command(name="approve", epilog=example("reccocktail build approve 660d4"))
@click.argument("id_", metavar="ID|DOMAIN")
@json_option
@pass_app
def approve_build(app: App, id_: str, as_json: bool) -> None:
    """Approve a build that somebody else requested."""
    with app.backend() as backend:
        row = named_build(backend, id_)
        names = backend.gates.approve_build(row.id)
    answer(
        as_json, {"id": row.id, "approved_by": names}, lambda: say(f"build {row.id} is approved by {', '.join(names)}")
    )
