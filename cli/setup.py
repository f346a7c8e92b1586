"""`init`, `doctor`, `db` and `store`: the house itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..registry.errors import RecCocktailError
from ..registry.settings import redacted_url
from .app import App, example, json_option, pass_app
from .console import answer, progress, say, size, table


@click.command(epilog=example("reccocktail init", "reccocktail --home ./here init"))
@json_option
@pass_app
def init(app: App, as_json: bool) -> None:
    """Create the database and the store; harmless when they are there."""
    from ..registry import Registry

    settings = app.settings
    Registry.create(settings).close()
    place = {"database": redacted_url(settings.database_url), "store": redacted_url(settings.store_url)}
    answer(as_json, place, lambda: say(f"ready: database {place['database']}, store {place['store']}"))


@click.command(epilog=example("reccocktail doctor"))
@json_option
@pass_app
def doctor(app: App, as_json: bool) -> None:
    """Check database, store, device, trainer plugins and Hub login; fails when the first three do not work."""
    checks: list[dict[str, Any]] = []

    def check(name: str, needed: bool, look: Callable[[], str]) -> None:
        try:
            checks.append({"check": name, "ok": True, "detail": look()})
        except RecCocktailError as error:
            detail = f"{error}" + (f" ({error.hint})" if error.hint else "")
            checks.append({"check": name, "ok": not needed, "detail": detail})

    check("database", True, lambda: _database(app))
    check("store", True, lambda: _store(app))
    check("device", True, lambda: f"{app.settings.device} → {app.device()}")
    check("trainers", False, _plugins)
    check("hub", False, _hub_login)
    rows = [[c["check"], "ok" if c["ok"] else "FAILS", c["detail"]] for c in checks]
    answer(as_json, checks, lambda: table(["check", "", "detail"], rows, empty=""))
    if not all(c["ok"] for c in checks):
        raise click.exceptions.Exit(1)


def _database(app: App) -> str:
    from ..registry.database import check

    return f"{redacted_url(app.settings.database_url)} at {check(app.settings.database_url)}"


def _store(app: App) -> str:
    from ..registry.store import Store

    with Store.open(app.settings.store_url).staging("doctor") as folder:
        (folder / "probe").write_bytes(b"x")
    return f"{redacted_url(app.settings.store_url)} is writable"


def _plugins() -> str:
    from ..trainers.plugin import installed

    return ", ".join(installed()) or "none installed"


def _hub_login() -> str:
    from huggingface_hub import get_token

    return "a token is there" if get_token() else "not logged in; `hf auth login` before publishing"


@click.group(epilog=example("reccocktail db check"))
def db() -> None:
    """The database and its migrations."""


@db.command(epilog=example("reccocktail db upgrade"))
@json_option
@pass_app
def upgrade(app: App, as_json: bool) -> None:
    """Bring the database to this version's schema."""
    from ..registry.database import upgrade as run

    revision = run(app.settings.database_url)
    answer(as_json, {"revision": revision}, lambda: say(f"database is at {revision}"))


@db.command(epilog=example("reccocktail db current"))
@json_option
@pass_app
def current(app: App, as_json: bool) -> None:
    """Show the schema revision that the database is at."""
    from ..registry.database import current as look

    revision = look(app.settings.database_url)
    answer(as_json, {"revision": revision}, lambda: click.echo(revision or "not initialised"))


@db.command(epilog=example("reccocktail db check"))
@json_option
@pass_app
def check(app: App, as_json: bool) -> None:
    """Fail unless the database is at this version's schema, without drift."""
    from ..registry.database import check as look

    revision = look(app.settings.database_url)
    answer(as_json, {"revision": revision, "drift": False}, lambda: say(f"database is at {revision}, without drift"))


@click.group(epilog=example("reccocktail store verify"))
def store() -> None:
    """The artifact store."""


@store.command(epilog=example("reccocktail store verify"))
@json_option
@pass_app
def verify(app: App, as_json: bool) -> None:
    """Hash everything in the store again; name what is damaged, and what the database misses."""
    with app.registry() as registry, progress("verifying", unit="bytes") as update:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            update(done, done, size(done))

        damage = registry.store.verify(progress=advance)
        missing = registry.missing()
    rows = [[d.digest, d.path, d.reason] for d in damage]
    rows += [[m.digest, m.what, "is not in the store"] for m in missing]
    document = {"ok": not rows, "damage": [dict(zip(("digest", "path", "reason"), r, strict=True)) for r in rows]}
    answer(as_json, document, lambda: table(["digest", "path", "reason"], rows, empty="nothing is damaged"))
    if rows:
        raise click.exceptions.Exit(1)


@store.command(epilog=example("reccocktail store gc --dry-run"))
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
@pass_app
def gc(app: App, dry_run: bool, as_json: bool) -> None:
    """Remove what no row of the database needs."""
    with app.registry() as registry:
        report = registry.store.gc(registry.digests(), dry_run=dry_run)
    document = {
        "trees": list(report.trees),
        "blobs": len(report.blobs),
        "staging": list(report.staging),
        "bytes": report.bytes,
        "dry_run": dry_run,
    }
    verb = "would remove" if dry_run else "removed"
    answer(as_json, document, lambda: say(f"{verb} {len(report.trees)} folders, {size(report.bytes)}"))
