"""`apply` and `export`: a registry as one file."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..registry.errors import LocalOnlyError
from .app import App, Interrupted, example, json_option, pass_app
from .console import answer, progress, say, tell

if TYPE_CHECKING:
    from ..registry.declared.document import Document
    from ..registry.declared.outcomes import Outcome

SIGNS = {"created": "+", "changed": "~", "failed": "!"}
STDIN = "-"
NOWHERE = Path("/beside-the-file")  # what relative paths are read as, to find them
SHORT = 60  # characters of a value in a difference


@click.command(
    epilog=example(
        "reccocktail apply -f registry.yaml --dry-run",
        "reccocktail apply -f registry.yaml",
        "reccocktail export | reccocktail --home ./copy apply -f -",
    )
)
@click.option("-f", "--file", "source", metavar="FILE", required=True, help="YAML or JSON file; - reads from stdin.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@json_option
@pass_app
def apply(app: App, source: str, dry_run: bool, as_json: bool) -> None:
    """Bring the registry to what a file says.

    The file lists bases, recipes, domains, adapters, aliases, policies and webhooks (docs/one-file.md). Applying it again changes nothing, and what it does
    not list stays as it is. An object that fails is reported, the others are applied, and the command exits with 1.
    """
    from ..engine.declared_versions import ways_of
    from ..registry.declared.applying import apply as apply_document
    from ..registry.declared.document import parse_document
    from ..registry.declared.outcomes import Outcome, described
    from ..trainers.domains import DomainCheck

    data, name, folder, suffix = _read(source)
    if app.url is not None:
        _refuse_relative(parse_document(data, name=name, folder=NOWHERE, suffix=suffix))
        with app.remote() as server:
            found = server.apply(data, dry_run=dry_run)
        _answer(found, [Outcome.from_json(each) for each in found["objects"]], dry_run, as_json)
        return
    document = parse_document(data, name=name, folder=folder, suffix=suffix)
    outcomes: list[Outcome] = []
    try:
        with app.registry() as registry, progress("checking" if dry_run else "applying") as bar:
            for outcome in apply_document(
                registry,
                document,
                ways_of(DomainCheck(registry.data_folder), say=say),
                dry_run=dry_run,
                progress=bar.update,
            ):
                outcomes.append(outcome)
    except KeyboardInterrupt as error:
        if not as_json:
            _show(outcomes, dry_run, nothing="nothing was done yet")
        raise Interrupted("run the same command again: it does what is left", error) from None
    _answer(described(outcomes, dry_run), outcomes, dry_run, as_json)


def _answer(found: Mapping[str, Any], outcomes: list[Outcome], dry_run: bool, as_json: bool) -> None:
    answer(as_json, found, lambda: _show(outcomes, dry_run))
    if found["counts"].get("failed"):
        raise click.exceptions.Exit(1)


def _refuse_relative(document: Document) -> None:
    """An absolute path is the server's own, as an export of it has them. Raises LocalOnlyError for a file beside this one."""
    paths = [path for each in document.domains for path in (each.data, each.files)]
    paths += [path for each in (*document.bases, *document.adapters) for path in (each.files, each.source)]
    paths += [each.file for each in document.recipes]
    for path in paths:
        if path is not None and path.startswith(str(NOWHERE)):
            beside = path.removeprefix(str(NOWHERE)).lstrip("/")
            raise LocalOnlyError(
                f"{beside!r} is a path on this machine, which the server that RECCOCKTAIL_URL names cannot read",
                hint="`base add`, `domain add` and `adapter add` send folders",
            )


def _read(source: str) -> tuple[bytes, str, Path, str]:
    """The bytes, the name for errors, the folder that paths are relative to, and the kind of file."""
    from ..registry.declared.document import LIMIT
    from ..registry.errors import UsageError
    from ..registry.strict_json import regular_bytes

    if source == STDIN:
        data = sys.stdin.buffer.read(LIMIT + 1)
        return data, "stdin", Path.cwd(), ".json" if data.lstrip().startswith(b"{") else ".yaml"
    path = Path(source).expanduser()
    try:
        data = regular_bytes(path, limit=LIMIT)
    except OSError as error:
        near = _like(path) if isinstance(error, FileNotFoundError) else ""
        raise UsageError(f"{path}: cannot be read: {error.strerror}{near}") from error
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    return data, str(path), path.resolve().parent, path.suffix.lower()


def _like(path: Path) -> str:
    """The file beside it whose name is much like the one that is not there."""
    from ..registry.catalog.references import did_you_mean

    try:
        names = [each.name for each in path.parent.iterdir() if each.suffix in (".yaml", ".yml", ".json")]
    except OSError:
        return ""
    return did_you_mean(path.name, names, before="" if path.parent == Path() else f"{path.parent}/")


def _show(outcomes: list[Outcome], dry_run: bool, *, nothing: str = "the file lists nothing") -> None:
    bases = {outcome.base for outcome in outcomes} - {None}
    for outcome in outcomes:
        for line in _lines(outcome, with_base=len(bases) > 1):
            tell(line)
    counts = Counter(outcome.action for outcome in outcomes)
    words = [f"{counts[action]} {action}" for action in ("created", "changed", "unchanged", "failed") if counts[action]]
    said = ", ".join(words) or nothing
    say(f"{said}{'; this was a dry run, and nothing was written' if dry_run else ''}")


def _lines(outcome: Outcome, *, with_base: bool) -> Iterator[str]:
    """`+ adapter beauty@v1  source: ./lora`, then what is to be said of it. Nothing of what is unchanged."""
    of = f" ({outcome.base})" if with_base and outcome.base else ""
    name = f"{outcome.kind} {outcome.name}{of}"
    if outcome.action in ("created", "changed"):
        changes = ", ".join(_change(field, *change) for field, change in outcome.changes.items())
        yield f"{SIGNS[outcome.action]} {name}{f'  {changes}' if changes else ''}"
    elif outcome.error is not None:
        at = f" (line {outcome.line})" if outcome.line is not None else ""
        yield f"! {name}{at}: {outcome.error['message']}"
        if outcome.error["hint"]:
            yield f"    hint: {outcome.error['hint']}"
    for remark in outcome.remarks:
        yield f"    {name}: {remark}" if outcome.action == "unchanged" else f"    note: {remark}"


def _change(field: str, before: Any, after: Any) -> str:
    return f"{field}: {_value(after)}" if before is None else f"{field}: {_value(before)} → {_value(after)}"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        shown = {key: f"({_value(each)})" if isinstance(each, Mapping) else each for key, each in value.items()}
        return ", ".join(f"{key}={each}" for key, each in shown.items() if each is not None)
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if text.startswith("sha256:"):
        return text[:19]
    return text if len(text) <= SHORT else f"…{text[-SHORT:]}"


@click.command(
    epilog=example(
        "reccocktail export > registry.yaml",
        "reccocktail export --json > registry.json",
        "reccocktail export | reccocktail --home ./copy apply -f -",
    )
)
@json_option
@pass_app
def export(app: App, as_json: bool) -> None:
    """Print the registry as a file that `apply` reads.

    Applied to an empty registry it gives the same digests, versions, aliases and policies; builds and events are not in it. The files of
    bases and adapters, and data that were uploaded, are named by their place in this registry's store.
    """
    from ..registry.declared.exporting import to_json, to_yaml

    with app.backend() as backend:
        content = backend.export()
        marks = backend.marks()
    click.echo((to_json if as_json else to_yaml)(content), nl=False)
    if marks != 0:
        count = "" if marks is None else f", of which there are {marks},"
        say(
            f"note: aliases and pins of builds{count} are not in the file, for builds are not;"
            " where it is applied, build again and `build promote`"
        )
