"""The database: how we connect, how transactions begin, and which revision the tables are at."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.orm import Session

from .errors import ConflictError, DatabaseError
from .settings import redacted_url
from .tables import Table, login_name

BUSY_SECONDS = 30


class Database:
    """Two ways in: `reading()` and `writing()`, each one transaction. Rows are created in the name of `actor`."""

    def __init__(self, url: str, *, actor: str | None = None) -> None:
        self.url = redacted_url(url)
        self._engine = _engine(url)
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE", actor=actor or login_name())

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with _translated(self.url), Session(self._engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Commits at the end; rolls back on any error. Raises ConflictError where a rule of the tables is broken."""
        with _translated(self.url), Session(self._writer) as session, session.begin():
            yield session

    def close(self) -> None:
        self._engine.dispose()


def upgrade(url: str) -> str:
    """Brings the tables to this version's revision, which is returned. Idempotent."""
    engine = _engine(url)
    try:
        with _translated(redacted_url(url)):
            if engine.dialect.name == "sqlite":
                folder = Path(engine.url.database or "").absolute().parent
                if not folder.is_dir():
                    raise DatabaseError(f"{folder}, where {redacted_url(url)} would be, is not a folder")
                _use_wal(engine)
            # one transaction from the first look to the last statement, so that two upgrades cannot interleave
            with engine.execution_options(begin="BEGIN IMMEDIATE").begin() as connection:
                _revision(connection)
                config = _alembic()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                return _head()
    finally:
        engine.dispose()


def current(url: str) -> str | None:
    """The database's revision; None if it has no tables of ours. Raises DatabaseError if it is newer than the code."""
    with _connected(url) as connection:
        return _revision(connection)


def check(url: str) -> str:
    """The revision, if the tables are exactly those of this version; otherwise DatabaseError says what to run."""
    with _connected(url) as connection:
        revision = _at_head(connection, url)
        differences = compare_metadata(MigrationContext.configure(connection), Table.metadata)
        if differences:
            raise DatabaseError(f"{redacted_url(url)} differs from its revision {revision}: {differences[0]}")
        return revision


def require_head(url: str) -> None:
    """Raises DatabaseError unless the database is at this version's revision."""
    with _connected(url) as connection:
        _at_head(connection, url)


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    engine = _engine(url)
    try:
        # SQLite would make an empty database where none is
        if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").is_file():
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
            hint="run `reccocktail db upgrade`",
        )
    return revision


def _revision(connection: Connection) -> str | None:
    revision = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in _scripts().walk_revisions()}
    if revision is not None and revision not in known:
        raise DatabaseError(
            f"the database is at revision {revision}, which this version does not know; its own newest is {_head()}",
            hint="upgrade reccocktail",
        )
    return revision


def _head() -> str:
    head = _scripts().get_current_head()
    assert head is not None
    return head


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_alembic())


def _alembic() -> Config:
    config = Config()
    # the rooms lie side by side, in the repository as in the wheel; the option is %-interpolated, so a % is doubled
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations").replace("%", "%%"))
    return config


def _engine(url: str) -> Engine:
    try:
        engine = create_engine(make_url(url))
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        raise DatabaseError(f"{redacted_url(url)} cannot be used as a database URL: {error}") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # the driver would begin transactions by itself, and only before some statements; _begin_sqlite does it instead
    connection.isolation_level = None
    # another process may be writing: wait for it rather than fail
    connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    # SQLite checks foreign keys only when asked to, connection by connection
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    # a writer takes the lock at once: a transaction that read first and then wants to write can only fail, not wait
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def _use_wal(engine: Engine) -> None:
    # readers and the writer do not block each other; the file remembers it, so once is enough
    raw = engine.raw_connection()
    try:
        raw.cursor().execute("PRAGMA journal_mode = WAL")
    finally:
        raw.close()


@contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise ConflictError(f"the database refused the change: {error.orig}") from error
    except (DBAPIError, sqlite3.Error) as error:  # SQLite's own where we pass SQLAlchemy by
        cause = error.orig if isinstance(error, DBAPIError) else error
        hint = "run `reccocktail doctor`"
        if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            hint = "move the file away or restore it, or set RECCOCKTAIL_DATABASE_URL to another"
        raise DatabaseError(f"{url}: {cause}", hint=hint) from error
