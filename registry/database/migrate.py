"""Migrations: upgrade, downgrade, and the check that a database is at the current revision."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, make_url

from ..errors import DatabaseError, UsageError
from ..settings import redacted_url
from .connection import _TO_WRITE, MIGRATIONS, UPGRADE_LOCK, _engine, _translated, _use_wal

if TYPE_CHECKING:  # opening a database needs no Alembic, and starts quicker without it
    from alembic.config import Config
    from alembic.script import ScriptDirectory


def upgrade(url: str, *, notes: list[str] | None = None) -> str:
    """Brings the tables to this version's revision, which is returned. Idempotent, and safe to run from many places.

    `notes` gets what a person should know of the data that moved: lines of text.
    """
    from alembic import command

    def up(connection: Connection, config: Config) -> None:
        config.attributes["notes"] = notes if notes is not None else []
        command.upgrade(config, "head")

    with _migrating(url, up):
        return _head()


def downgrade(url: str, revision: str, *, allow_loss: bool = False) -> str:
    """Brings the tables back to an older revision. Raises UsageError where that loses data and `allow_loss` is not set."""
    from alembic import command

    if revision not in (known := ["base", *_revisions()]):
        raise UsageError(f"there is no revision {revision!r}", hint=f"known are {', '.join(known)}")

    def down(connection: Connection, config: Config) -> None:
        present = _revision(connection)
        if present is None:
            raise DatabaseError(f"{redacted_url(url)} has no tables yet", hint="run `reccocktail init`")
        if revision != "base" and int(revision) > int(present):
            raise UsageError(f"{redacted_url(url)} is at revision {present}, and {revision} is newer")
        steps = [*_scripts().iterate_revisions(present, revision)]
        losses = [f"{script.revision}: {script.module.LOSES}" for script in steps if script.module.LOSES]
        if losses and not allow_loss:
            raise UsageError(
                f"going back to revision {revision} loses data: {'; '.join(losses)}",
                hint="back the database up, then say --allow-data-loss",
            )
        command.downgrade(config, revision)

    with _migrating(url, down):
        return revision


@contextmanager
def _migrating(url: str, step: Callable[[Connection, Config], None]) -> Iterator[None]:
    engine = _engine(url, migrating=True)
    try:
        with _translated(redacted_url(url)):
            if engine.dialect.name == "sqlite":
                folder = Path(engine.url.database or "").absolute().parent
                if not folder.is_dir():
                    raise DatabaseError(f"{folder}, where {redacted_url(url)} would be, is not a folder")
                _use_wal(engine)
            # one transaction from the first look to the last statement, so that two migrations cannot interleave
            with engine.execution_options(begin=_TO_WRITE).begin() as connection:
                if engine.dialect.name == "postgresql":
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({UPGRADE_LOCK})")
                _revision(connection)
                config = _alembic()
                config.attributes["connection"] = connection
                step(connection, config)
                if engine.dialect.name == "sqlite":
                    _check_references(connection)
        yield
    finally:
        engine.dispose()


def _check_references(connection: Connection) -> None:
    """SQLite's foreign keys are off while tables are rebuilt; what came of it is checked before the commit."""
    if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").first():
        raise DatabaseError(f"row {broken[1]} of {broken[0]} refers to a row of {broken[2]} that is not there")


def current(url: str) -> str | None:
    """The database's revision; None if it has no tables of ours. Raises DatabaseError if it is newer than the code."""
    with _connected(url) as connection:
        return _revision(connection)


def check(url: str) -> str:
    """The revision, if the tables are exactly those of this version; otherwise DatabaseError says what to run."""
    from . import drift

    with _connected(url) as connection:
        revision = _at_head(connection, url)
        differences = drift.found(connection, _new_sqlite)
        if differences:
            more = f" (and {len(differences) - 1} more)" if differences[1:] else ""
            raise DatabaseError(
                f"{redacted_url(url)} differs from its revision {revision}: {differences[0]}{more}",
                hint="someone changed the tables by hand: undo that, or restore a backup (docs/operations.md)",
            )
        return revision


def _new_sqlite() -> dict[str, str]:
    from . import drift

    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/new.sqlite"
        upgrade(url)
        with _connected(url) as connection:
            return drift.statements(connection)


def require_head(url: str) -> None:
    """Raises DatabaseError unless the database is at this version's revision."""
    with _connected(url) as connection:
        _at_head(connection, url)


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    engine = _engine(url)
    try:
        # SQLite would make an empty database where none is
        if engine.dialect.name == "sqlite" and not Path(make_url(url).database or "").is_file():
            raise DatabaseError(f"there is no database at {redacted_url(url)}", hint="run `reccocktail init`")
        with _translated(redacted_url(url)), engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _at_head(connection: Connection, url: str) -> str:
    revision, head = _revision(connection), _head()
    if revision is None:
        raise DatabaseError(f"{redacted_url(url)} has no tables yet", hint="run `reccocktail init`")
    if revision != head:
        raise DatabaseError(
            f"{redacted_url(url)} is at revision {revision}, but this version needs {head}",
            hint="back up the database (docs/operations.md), then run `reccocktail db upgrade`",
        )
    return revision


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if revision is not None and revision not in _revisions():
        raise DatabaseError(
            f"the database is at revision {revision}, which this version does not know; its own newest is {_head()}",
            hint="upgrade reccocktail",
        )
    return revision


def _head() -> str:
    return _revisions()[-1]


def _revisions() -> list[str]:
    """Oldest first; a migration's file begins with its revision."""
    return sorted(path.name.partition("_")[0] for path in MIGRATIONS.glob("versions/[0-9]*.py"))


def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_alembic())


def _alembic() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))  # the option is %-interpolated
    return config
