"""`init`, `doctor`, `db` and `store`: the registry itself."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ..registry.errors import DatabaseError, RecCocktailError, StoreError, UsageError
from ..registry.settings import is_remote, redacted_url
from ..registry.store import open_store
from .app import App, example, json_option, pass_app
from .console import answer, counted, progress, say, size, table, warn

if TYPE_CHECKING:
    from ..registry import Registry, Store

READ_ONLY = "read-only: reading commands work"


@dataclass(frozen=True)
class _Seen:
    """What a check of `doctor` found where something works, if only for reading."""

    detail: str
    read_only: bool = False
    open: bool = False


@click.command(epilog=example("reccocktail init", "reccocktail --home ./here init"))
@json_option
@pass_app
def init(app: App, as_json: bool) -> None:
    """Create the database and the store. Harmless if they exist."""
    settings = app.settings
    app.registry(create=True).close()
    place = {"database": redacted_url(settings.database_url), "store": redacted_url(settings.store_url)}
    answer(as_json, place, lambda: say(f"ready: database {place['database']}, store {place['store']}"))


@click.command(epilog=example("reccocktail doctor"))
@json_option
@pass_app
def doctor(app: App, as_json: bool) -> None:
    """Check database, store, device, plugins and Hub login.

    Exits with 1 if database, store or device do not work.

    Of an object store it also shows how large its cache on this machine is. A database or store that can be read and not written works: it is reported as read-only, and commands that only read
    can be used.
    """
    from ..registry.database.connection import ASK_DOCTOR

    checks: list[dict[str, Any]] = []

    def check(name: str, needed: bool, look: Callable[[], _Seen]) -> None:
        ok = True
        try:
            seen = look()
        except (RecCocktailError, OSError) as error:
            hint = getattr(error, "hint", None)
            more = f" ({hint})" if hint and hint != ASK_DOCTOR else ""
            ok, seen = not needed, _Seen(f"{error}{more}")
        about = {"check": name, "ok": ok, "read_only": seen.read_only, "open": seen.open, "detail": seen.detail}
        checks.append(about)

    check("database", True, lambda: _database(app))
    check("store", True, lambda: _store(app))
    if is_remote(app.settings.store_url):
        check("cache", False, lambda: _cache(app))
    if not app.settings.store_shared:
        check("modes", False, lambda: _modes(app))
    check("device", True, lambda: _Seen(f"{app.settings.device} → {app.device()}"))
    check("trainers", False, _plugins)
    check("hub", False, _hub_login)
    rows = [[c["check"], _verdict(c), c["detail"]] for c in checks]
    answer(as_json, checks, lambda: table(["check", "", "detail"], rows, empty=""))
    if not all(c["ok"] for c in checks):
        raise click.exceptions.Exit(1)


def _verdict(check: dict[str, Any]) -> str:
    if not check["ok"]:
        return "FAILS"
    return "reads" if check["read_only"] else "open" if check["open"] else "ok"


def _database(app: App) -> _Seen:
    from sqlalchemy import text

    from ..registry.database.connection import Database
    from ..registry.database.migrate import check

    found = f"{redacted_url(app.settings.database_url)} at {check(app.settings.database_url)}"
    database = Database(app.settings.database_url, actor=app.actor)
    try:
        with database.writing() as session:
            session.execute(text("UPDATE domains SET title = title WHERE 1 = 0"))
    except DatabaseError as error:
        return _Seen(f"{READ_ONLY}; {found} ({error})", read_only=True)
    finally:
        database.close()
    return _Seen(found)


def _store(app: App) -> _Seen:

    try:
        with app.registry() as registry:
            return _probed(app, registry.store)
    except DatabaseError:  # has a line of its own
        return _probed(app, open_store(app.settings.store_url, cache=app.settings.cache))


def _probed(app: App, store: Store) -> _Seen:
    url = redacted_url(app.settings.store_url)
    try:
        store.probe()
    except StoreError as error:
        return _Seen(f"{READ_ONLY}; {url} ({error})", read_only=True)
    return _Seen(f"{url} is writable")


def _cache(app: App) -> _Seen:
    from ..registry.store.cache import Cache

    settings = app.settings
    cache = Cache(settings.cache, settings.cache_limit)
    used = cache.bytes()
    limit = f"of at most {size(cache.limit)}" if cache.limit else "without limit"
    above = (
        "; above the limit while files are in use, or until the next file is fetched" if 0 < cache.limit < used else ""
    )
    return _Seen(f"{settings.cache} has {size(used)} {limit}{above}")


def _modes(app: App) -> _Seen:
    """Whether others of this machine may look into what is private; a home that is closed closes all that lies in it."""
    from ..registry.database.connection import sqlite_file
    from ..registry.ownership import open_to_others

    settings = app.settings
    places = [(settings.home, "700"), (sqlite_file(settings.database_url), "600"), (settings.store_folder, "700")]
    places += [(settings.home / name, "700") for name in ("cache", "data", "evaluations", "runs")]
    closed = open_to_others(settings.home) is None
    found = [
        f"{place} has mode {mode}: `chmod {wanted} {shlex.quote(str(place))}`"
        for place, wanted in places
        if place is not None and (mode := open_to_others(place))
        if not (closed and place.is_relative_to(settings.home))
    ]
    if found:
        return _Seen(
            f"other users of this machine can read: {'; '.join(found)}; or set store_shared, if that is intended",
            open=True,
        )
    return _Seen("home, database and store are readable by this user only")


def _plugins() -> _Seen:
    from ..trainers.plugin import installed

    return _Seen(", ".join(installed()) or "none installed")


def _hub_login() -> _Seen:
    from huggingface_hub import get_token

    return _Seen("a token is set" if get_token() else "not logged in; `hf auth login` before publishing")


@click.group(epilog=example("reccocktail db check"))
def db() -> None:
    """The database schema: upgrade, downgrade, check."""


@db.command(epilog=example("reccocktail db upgrade"))
@json_option
@pass_app
def upgrade(app: App, as_json: bool) -> None:
    """Upgrade the database to this version's schema."""
    from ..registry.database.migrate import upgrade as run

    notes: list[str] = []
    revision = run(app.settings.database_url, notes=notes)

    def show() -> None:
        for note in notes:
            warn(note)
        say(f"database is at {revision}")

    answer(as_json, {"revision": revision, "notes": notes}, show)


@db.command(epilog=example("reccocktail db downgrade 0001"))
@click.argument("revision")
@click.option("--allow-data-loss", is_flag=True, help="Continue even if the older schema cannot hold all data.")
@json_option
@pass_app
def downgrade(app: App, revision: str, allow_data_loss: bool, as_json: bool) -> None:
    """Move the database back to an older revision. Make a backup first."""
    from ..registry.database.migrate import downgrade as run

    reached = run(app.settings.database_url, revision, allow_loss=allow_data_loss)
    answer(as_json, {"revision": reached}, lambda: say(f"database is at {reached}"))


@db.command(epilog=example("reccocktail db current"))
@json_option
@pass_app
def current(app: App, as_json: bool) -> None:
    """Show the revision of the database schema."""
    from ..registry.database.migrate import current as look

    revision = look(app.settings.database_url)
    answer(as_json, {"revision": revision}, lambda: click.echo(revision or "not initialised"))


@db.command(epilog=example("reccocktail db check"))
@json_option
@pass_app
def check(app: App, as_json: bool) -> None:
    """Check that the schema is current and unchanged."""
    from ..registry.database.migrate import check as look

    revision = look(app.settings.database_url)
    answer(as_json, {"revision": revision, "drift": False}, lambda: say(f"database is at {revision}, without drift"))


@click.group(epilog=example("reccocktail store verify"))
def store() -> None:
    """The artifact store: verify, collect garbage."""


@store.command(epilog=example("reccocktail store verify"))
@json_option
@pass_app
def verify(app: App, as_json: bool) -> None:
    """Hash the whole store again; list damaged and missing files."""
    with app.registry() as registry, progress("verifying", unit="bytes") as bar:
        damage = registry.store.verify(progress=bar.add)
        missing = registry.missing()
    rows = [[d.digest, d.path, d.reason] for d in damage]
    rows += [[m.digest, m.what, "is not in the store"] for m in missing]
    document = {"ok": not rows, "damage": [dict(zip(("digest", "path", "reason"), r, strict=True)) for r in rows]}
    answer(as_json, document, lambda: table(["digest", "path", "reason"], rows, empty="nothing is damaged"))
    if rows:
        raise click.exceptions.Exit(1)


@store.command(epilog=example("reccocktail store gc --dry-run", "reccocktail store gc --grace 1"))
@click.option("--dry-run", is_flag=True, help="Dry run: list what would be removed.")
@click.option(
    "--grace",
    "hours",
    type=click.FloatRange(0, 1_000_000),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="Keep files younger than this; their row may not be written yet.",
)
@click.option(
    "--builds-older-than",
    "days",
    type=click.FloatRange(0, 36_500),
    metavar="DAYS",
    help="Also remove the results of builds that succeeded longer ago and that nobody needs.",
)
@click.option("--force", is_flag=True, help="Continue even if the database refers to nothing in the store.")
@json_option
@pass_app
def gc(app: App, dry_run: bool, hours: float, days: float | None, force: bool, as_json: bool) -> None:
    """Remove files that no database row refers to.

    With --builds-older-than, also results of builds without an alias and without a pin (`build pin`). The newest of each domain
    and what was published last are kept. The rows stay; such a build can only be requested again.
    """
    from datetime import UTC, datetime, timedelta

    if math.isnan(hours) or (days is not None and math.isnan(days)):
        raise UsageError("--grace takes a number of hours, --builds-older-than one of days, not nan")
    with app.registry() as registry:
        builds = []
        if days is not None:
            before = datetime.now(UTC) - timedelta(days=days)
            builds = registry.collect_builds(before, dry_run=dry_run, force=force)
        without = [row.id for row in builds]
        # unknown afterwards
        waste = registry.store.digests() - registry.digests(without=without)
        sizes = {digest: _size(registry, digest) for digest in waste}
        report = registry.collect(dry_run=dry_run, grace=timedelta(hours=hours), force=force, without=without)
    document = {
        "builds": [{"id": row.id, "domain": row.domain, "digest": row.digest} for row in builds],
        "trees": [{"digest": digest, "bytes": sizes.get(digest)} for digest in report.trees],
        "blobs": list(report.blobs),
        "staging": list(report.staging),
        "bytes": report.bytes,
        "dry_run": dry_run,
    }

    def show() -> None:
        rows: list[list[str | None]] = [["build", f"{row.id} of {row.domain}", None] for row in builds]
        rows += [
            ["folder", digest, None if (count := sizes.get(digest)) is None else size(count)] for digest in report.trees
        ]
        rows += [["unfinished", name, None] for name in report.staging]
        if report.blobs:
            rows.append(["files", f"{len(report.blobs)} used by these only", size(report.bytes)])
        if rows:
            table(["what", "name", "size"], rows, right=("size",), empty="")
        verb = "would remove" if dry_run else "removed"
        counts = f"{counted(len(report.trees), 'folder')}, {counted(len(report.blobs), 'file')}, {len(report.staging)} unfinished"
        results = f"{counted(len(builds), 'result')} of builds, " if builds else ""
        say(f"{verb} {results}{counts}: {size(report.bytes)}")

    answer(as_json, document, show)


def _size(registry: Registry, digest: str) -> int | None:
    """The bytes of a tree; None if its manifest cannot be read."""
    try:
        return registry.store.tree(digest).bytes
    except StoreError:
        return None
