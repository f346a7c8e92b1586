"""`adapter`: spirits and ingredients, their versions and aliases."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ..registry.catalog.event_text import happened
from ..registry.catalog.references import BI_TUNING, LORA
from ..registry.errors import UsageError
from ..registry.moments import moment
from .app import App, base_option, example, json_option, pass_app
from .console import NO_MORE, answer, details, page, progress, say, short, table, warn
from .evaluation_records import show_measured

if TYPE_CHECKING:
    from ..registry import Adapter


@click.group(epilog=example("reccocktail adapter list --domain beauty"))
def adapter() -> None:
    """Adapters: versions, aliases, metadata, checks."""


def key_values(pairs: tuple[str, ...], option: str) -> dict[str, str]:
    """`k=v` pairs as a mapping. Raises UsageError for one without a name or a sign."""
    found = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UsageError(f"{option} takes key=value, not {pair!r}")
        found[key] = value
    return found


@adapter.command(
    epilog=example(
        "reccocktail adapter add ./lora --base smollm2 --domain beauty --metric HR@1=0.41",
        "reccocktail adapter add ./general-lora --base smollm2 --spirit --tag 2026-11",
        "reccocktail adapter add ./mlruns/1/models/m-0a1b --base smollm2 --domain beauty",
    )
)
@click.argument("source", metavar="PATH_OR_REPO")
@click.option("--base", "base_name", metavar="B", required=True, help="Base model that it was trained on.")
@click.option("--spirit", is_flag=True, help="Register as the base spirit.")
@click.option("--domain", metavar="D", help="Register as this domain's ingredient.")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a Hub repo.")
@click.option("--metric", "metrics", metavar="K=V", multiple=True, help="Metric to store with it.")
@click.option("--tag", "tags", metavar="T", multiple=True, help="Tag to store with it.")
@click.option("--note", metavar="S", help="Free text to store with it.")
@click.option("--alias", "aliases", metavar="NAME", multiple=True, help="Set this alias, or move it here.")
@click.option(
    "--source", "code", metavar="URL", help="Code that it was made with; default: git's commit and remote here."
)
@click.option("--run", metavar="URL", help="Run that made it; default: that of MLflow's or W&B's variables.")
@click.option(
    "--if-exists",
    type=click.Choice(["reuse", "fail"]),
    default="reuse",
    show_default=True,
    help="If its content is registered already: use that version, or fail.",
)
@click.option("--no-scan", is_flag=True, help="Skip the check that all weights are finite.")
@click.option("--allow-base-mismatch", is_flag=True, help="Accept an adapter that names another base model.")
@click.option(
    "--allow-partial", is_flag=True, help="Accept an adapter that lacks tensors which its configuration names."
)
@json_option
@pass_app
def add(
    app: App,
    source: str,
    base_name: str,
    spirit: bool,
    domain: str | None,
    revision: str | None,
    metrics: tuple[str, ...],
    tags: tuple[str, ...],
    note: str | None,
    aliases: tuple[str, ...],
    code: str | None,
    run: str | None,
    if_exists: str,
    no_scan: bool,
    allow_base_mismatch: bool,
    allow_partial: bool,
    as_json: bool,
) -> None:
    """Check an adapter and register it as the next version.

    PATH_OR_REPO is a PEFT folder or that of a personalised LoRA, a model or run that MLflow wrote to a folder, or ORG/NAME on the Hub.
    """
    from ..api.orders import NewAdapter
    from ..registry.artifacts.provenance import made_by
    from ..registry.catalog.registration import Checks, Labels

    if spirit == (domain is not None):
        raise UsageError("give either --spirit or --domain NAME")
    figures = {key: number(key, value) for key, value in key_values(metrics, "--metric").items()}
    new = NewAdapter(
        source,
        base_name,
        Labels(figures, tags, note, aliases=aliases),
        Checks(allow_base_mismatch, allow_partial, scan=not no_scan, reuse=if_exists == "reuse"),
        domain=domain,
        revision=revision,
        made=made_by(code, run),
    )
    with app.backend() as backend:
        row = backend.add_adapter(new, storing=partial(progress, "storing", unit="bytes"), say=say)
    report_added(row, as_json)


def report_added(row: Adapter, as_json: bool) -> None:
    """What came of a registration: whether it is a new version, and what was not taken over."""
    if row.ignored:
        warn(
            f"not applied, because the version is there already: {', '.join(row.ignored)}; `adapter edit {row.ref}` changes them"
        )
    if row.skipped:
        say(f"not stored, because no adapter needs it: {', '.join(row.skipped)}")
    for remark in row.notes:
        say(f"note: {remark}")
    answer(
        as_json,
        row.to_json() | {"created": row.created, "not_stored": list(row.skipped), "notes": list(row.notes)},
        lambda: say(
            f"{'registered' if row.created else 'already there'}: {' = '.join([row.ref, *(f'@{alias}' for alias in row.aliases)])}"
        ),
    )


def number(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"--metric {key}={value}: what follows the = is not a number") from None


@adapter.command(
    epilog=example("reccocktail adapter show beauty@champion", "reccocktail adapter show beauty --at 2026-03-03")
)
@click.argument("ref")
@click.option(
    "--at",
    "when",
    metavar="WHEN",
    help="Point in time: 2026-03-03 (end of that day) or 2026-03-03T14:00. UTC unless it has an offset.",
)
@base_option
@json_option
@pass_app
def show(app: App, ref: str, when: str | None, base: str | None, as_json: bool) -> None:
    """Show a version, its evaluations, builds and publications.

    With --at, what REF resolved to at that time, with the aliases, tags, note, description, links and metrics of that time.
    """
    at = None if when is None else moment(when)
    with app.backend() as backend:
        row, document = backend.show_adapter(ref, base=base, at=at)
        measured = [] if at or as_json else backend.evaluations_of_adapter(row)
    facts = row.to_json() | {"path": document["path"]}
    if at is not None:
        say(f"as of {at.isoformat()}")
        answer(as_json, document, lambda: details(facts))
        return

    def show_all() -> None:
        details({name: value for name, value in facts.items() if name not in _left_out(row)})
        if row.context:
            click.echo("\ncontext:")
            details(_flat(row.context))
        show_measured(measured, row.ref)
        _show_reached(row, document)

    answer(as_json, document, show_all)


def _left_out(row: Adapter) -> set[str]:
    """Of a version's record: a bundle is no ingredient, and a bi-tuning has no rank."""
    left = {"context"} if row.kind == LORA else {"context", "role"}
    return left | ({"rank", "alpha"} if row.kind == BI_TUNING else set())


def _flat(context: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """One entry for each value, named like `options.epochs`; what is not set is left out."""
    found: dict[str, Any] = {}
    for name, value in context.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def _show_reached(row: Adapter, document: Mapping[str, Any]) -> None:
    rows = [[b["id"], b["domain"], b["status"], b["created_at"][:16].replace("T", " ")] for b in document["builds"]]
    click.echo(f"\nbuilds that it is in: {document['build_count']}")
    if rows:
        table(["id", "domain", "status", "created"], rows, empty="")
    if document["build_count"] > len(rows):
        say(f"({len(rows)} shown; all: reccocktail build list --adapter {row.ref} --base {row.base})")
    click.echo(f"publications of those: {document['publication_count']}")
    published = [
        [p["repo"], p["revision"][:12], p["tag"], p["build"], p["created_at"][:10]] for p in document["publications"]
    ]
    if published:
        table(["repo", "revision", "tag", "build", "published"], published, empty="")
    if document["publication_count"] > len(published):
        say(f"({len(published)} shown)")


@adapter.command(
    epilog=example(
        "reccocktail adapter log beauty",
        "reccocktail adapter log beauty@champion",
        "reccocktail adapter log beauty@v2 --json",
    ),
)
@click.argument("ref", metavar="REF|DOMAIN")
@base_option
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option(
    "--after", type=click.IntRange(1), metavar="ID", help="Start after this entry: the last of the previous page."
)
@json_option
@pass_app
def log(app: App, ref: str, base: str | None, limit: int, after: int | None, as_json: bool) -> None:
    """Show who changed what, newest first.

    NAME@vN: that version and its aliases. NAME@ALIAS: every version that had the alias. NAME: all versions.
    """
    with app.backend() as backend:
        found = backend.adapters.log(ref, base=base, limit=limit + 1, after=after)
    bases = {event.detail.get("base") for event in found}
    rows = [
        [f"{e.created_at:%Y-%m-%d %H:%M:%S}", e.created_by, happened(e), *([e.detail.get("base")] * (len(bases) > 1))]
        for e in found[:limit]
    ]

    def show_rows() -> None:
        columns = ["when (UTC)", "who", "what", *(["base"] * (len(bases) > 1))]
        table(columns, rows, empty=f"there is no event for {ref}" if after is None else NO_MORE)
        page([event.id for event in found], limit)

    answer(as_json, [event.to_json() for event in found[:limit]], show_rows)


@adapter.command(
    epilog=example(
        "reccocktail adapter alias beauty@v3 champion",
        "reccocktail adapter alias beauty@candidate --remove",
    )
)
@click.argument("ref")
@click.argument("name", required=False)
@click.option("--remove", is_flag=True, help="Delete the alias of NAME@ALIAS.")
@click.option(
    "--override", metavar="WHY", help="Move champion although the domain's gate is closed; the reason is recorded."
)
@base_option
@json_option
@pass_app
def alias(
    app: App, ref: str, name: str | None, remove: bool, override: str | None, base: str | None, as_json: bool
) -> None:
    """Set, move or delete an alias of a version.

    Where the domain has a gate (`reccocktail domain gate`), champion moves only to a version that passes it.
    """
    if remove == (name is not None):
        raise UsageError(
            "give the alias to set, or --remove",
            hint="`reccocktail adapter alias REF NAME`, or `reccocktail adapter alias NAME@ALIAS --remove`",
        )
    with app.backend() as backend:
        if name is None:
            row = backend.adapters.remove_alias(ref, base=base, override=override)
        else:
            row = backend.set_alias(ref, name, base=base, override=override)
    message = f"{row.ref} no longer has the alias {ref.partition('@')[2]}" if name is None else f"{name} is {row.ref}"
    answer(as_json, row.to_json(), lambda: say(message))


@adapter.command(
    epilog=example("reccocktail adapter archive beauty@v1", "reccocktail adapter archive beauty@v1 --undo")
)
@click.argument("ref")
@click.option(
    "--force", is_flag=True, help="Archive even if it is in use: champion, or in a current or published build."
)
@click.option(
    "--override", metavar="WHY", help="Archive the champion of a domain that has a gate; the reason is recorded."
)
@click.option("--undo", is_flag=True, help="Undo: make it available again.")
@base_option
@json_option
@pass_app
def archive(app: App, ref: str, force: bool, override: str | None, undo: bool, base: str | None, as_json: bool) -> None:
    """Archive a version.

    A bare name no longer resolves to it. Its number, files and aliases stay.
    """
    if (force or override is not None) and undo:
        raise UsageError("--force and --override are for archiving, not for --undo")
    with app.backend() as backend:
        if undo:
            row, uses = backend.adapters.restore(ref, base=base), []
        else:
            row, uses = backend.archive(ref, base=base, force=force, override=override)
    for use in uses:
        warn(f"warning: {row.ref} is in use: {use}")
    message = f"{row.ref} is active again" if undo else f"{row.ref} is archived"
    answer(as_json, row.to_json() | {"uses": uses}, lambda: say(message))


@adapter.command(epilog=example("reccocktail adapter verify beauty@v3"))
@click.argument("ref")
@base_option
@json_option
@pass_app
def verify(app: App, ref: str, base: str | None, as_json: bool) -> None:
    """Check a registered version again, digests included."""
    with app.backend() as backend:
        found = backend.verify_adapter(ref, base=base)
    for note in found["notes"]:
        say(f"note: {note}")
    answer(as_json, found, lambda: say(f"{found['ref']} is sound: {short(found['digest'])}"))
