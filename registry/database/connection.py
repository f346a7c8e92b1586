"""The database: how we connect, how transactions begin, and which revision the tables are at."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.orm import Session, configure_mappers
from sqlalchemy.pool import NullPool

from ..errors import ConflictError, DatabaseError, StoreError, UnavailableError, UsageError
from ..ownership import private_file
from ..redaction import check_no_secret
from ..settings import redacted_url
from ..signals import deferred
from ..store.files import is_full
from ..store.locks import StoreLock
from ..store.room import NO_ROOM
from .tables import login_name
from .write_queue import begin_writing

BUSY_SECONDS = 30
_TO_WRITE = "BEGIN IMMEDIATE"
MIGRATIONS = Path(__file__).parents[2] / "migrations"  # the rooms lie side by side, in the repository as in the wheel
STORE_LOCK_SECONDS = 1800
# PostgreSQL's advisory locks are numbers; any will do that nobody else takes
UPGRADE_LOCK, STORE_LOCK = 0x5EC0C7A11, 0x5EC0C7A12


class Database:
    """Two ways in: `reading()`, and `writing()` in one transaction. Rows are created in the name of `actor`.

    A signal that ends the process is put off to the end of either: it would leave a transaction open.
    """

    def __init__(self, url: str, *, actor: str | None = None) -> None:
        self.url = redacted_url(url)
        # on PostgreSQL every statement of a reader sees what is committed when it begins, in a transaction or not: without
        # one it takes half the trips to the server. SQLite's readers keep one snapshot.
        self._engine = _engine(url, postgresql_isolation="AUTOCOMMIT")
        in_transaction = {"isolation_level": "READ COMMITTED"} if self.dialect == "postgresql" else {}
        self.actor = check_no_secret("actor", actor or login_name())
        self._writer = self._engine.execution_options(begin=_TO_WRITE, actor=self.actor, **in_transaction)

    def acting_as(self, actor: str) -> Database:
        """The same database and its connections, for rows in the name of another."""
        other = copy(self)
        other.actor = check_no_secret("actor", actor)
        other._writer = self._writer.execution_options(actor=other.actor)
        return other

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with deferred(), _translated(self.url), Session(self._engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Commits at the end; rolls back on any error. Raises ConflictError where a rule of the tables is broken."""
        configure_mappers()  # takes as long as many writes, once in a process: not while others wait
        with deferred(), _translated(self.url), Session(self._writer) as session, session.begin():
            yield session

    def store_lock(self) -> StoreLock | None:
        """What keeps writers of a store and its collection apart on all machines that use this database; None on SQLite."""
        if self.dialect != "postgresql":
            return None
        # connections of its own: many threads may hold it while they look for others
        return _AdvisoryLock(
            create_engine(self._engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT"), self.url
        )

    def close(self) -> None:
        self._engine.dispose()


class _AdvisoryLock:
    """A StoreLock that PostgreSQL holds for as long as a connection of ours lives."""

    def __init__(self, engine: Engine, url: str) -> None:
        self._engine = engine
        self._url = url

    @contextmanager
    def shared(self) -> Iterator[None]:
        with _translated(self._url), self._engine.connect() as connection:
            connection.exec_driver_sql(f"SET lock_timeout = '{STORE_LOCK_SECONDS}s'")
            connection.exec_driver_sql(f"SELECT pg_advisory_lock_shared({STORE_LOCK})")
            try:
                yield
            finally:
                connection.exec_driver_sql(f"SELECT pg_advisory_unlock_shared({STORE_LOCK})")

    @contextmanager
    def exclusive(self, wait_seconds: float) -> Iterator[None]:
        until = time.monotonic() + wait_seconds
        with _translated(self._url), self._engine.connect() as connection:
            while not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({STORE_LOCK})").scalar():
                if time.monotonic() >= until:
                    raise StoreError(
                        f"others have kept writing to the store for {wait_seconds:g} seconds",
                        hint="try again when fewer write, or look for a writer that hangs",
                    )
                time.sleep(0.05)
            try:
                yield
            finally:
                connection.exec_driver_sql(f"SELECT pg_advisory_unlock({STORE_LOCK})")


def make_private(url: str) -> None:
    """A database that is a file is made for this user alone, where it is not there yet; SQLite gives its companions the same mode."""
    with suppress(OSError, DatabaseError):  # reported when it is opened
        if (path := sqlite_file(url)) is not None:
            private_file(path)


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite database, None for any other. Raises DatabaseError."""
    engine = _engine(url)
    try:
        return Path(engine.url.database or "").absolute() if engine.dialect.name == "sqlite" else None
    finally:
        engine.dispose()


def _engine(url: str, *, migrating: bool = False, postgresql_isolation: Any = None) -> Engine:
    try:
        parsed = make_url(re.sub(r"^postgres://", "postgresql://", url))
        options: dict[str, Any] = {}
        if "@" in (parsed.host or ""):  # a password with an @ that is not escaped: its end is taken for the host
            raise ValueError("@ in the host")
        if parsed.get_backend_name() == "postgresql":
            # nobody waits for ever, except for a migration; a server that was restarted is noticed before it is asked
            waits = "" if migrating else f"-c lock_timeout={BUSY_SECONDS}s "
            given = parsed.query.get("options", ())
            wanted = waits + (given if isinstance(given, str) else " ".join(given))
            # a network that swallows packets is noticed within half a minute, which is less than a lease
            alive = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
            given_alive = {name: value for name, value in alive.items() if name not in parsed.query}
            options = {"connect_args": {"connect_timeout": 10, "options": wanted} | given_alive, "pool_pre_ping": True}
            options["isolation_level"] = postgresql_isolation
        elif parsed.get_backend_name() == "sqlite":
            if parsed.database in (None, "", ":memory:"):
                raise DatabaseError(
                    f"{url}: a database in memory keeps nothing", hint="name a file: sqlite:////folder/file"
                )
            path = Path(parsed.database or "").absolute()
            if path.is_file() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
                # each connection looks anew, because others may be writing
                options = {"creator": lambda: _reading_sqlite(path), "poolclass": NullPool}
        else:
            raise DatabaseError(
                f"{redacted_url(url)}: {parsed.get_backend_name()} is not supported", hint="use SQLite or PostgreSQL"
            )
        engine = create_engine(parsed, **options)
    except ModuleNotFoundError as error:
        raise DatabaseError(
            f"{redacted_url(url)} needs the package {error.name}", hint="pip install 'reccocktail[postgres]'"
        ) from error
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        # what the library says of it may quote a password
        raise DatabaseError(
            f"{redacted_url(url)} cannot be used as a database URL",
            hint="write sqlite:////folder/file or postgresql://user:password@host/name, with %40 for a @ in a password",
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "do_connect", _connect_sqlite)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        if migrating:
            event.listen(engine, "connect", _without_foreign_keys)
    return engine


def _reading_sqlite(path: Path) -> sqlite3.Connection:
    # readers of a write-ahead log need a lock file beside the database, which cannot be made here; without a log
    # nobody is writing, and the file can be read as it is
    log = path.with_name(path.name + "-wal")
    mode = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
    return sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, check_same_thread=False)


class _WithoutRoom(sqlite3.Connection):
    """For reading alone, where the disk has no room for the files that SQLite keeps beside a database in use."""


def _connect_sqlite(_dialect: Any, _record: Any, words: list[Any], named: dict[str, Any]) -> sqlite3.Connection | None:
    path = Path(words[0]) if words else Path()
    if not path.is_file():  # a URI of SQLite's own, or a database that is still to be made
        return None
    connection = sqlite3.connect(*words, **named)
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in _WITHOUT_FILES or not is_full(path.parent):
            return connection  # its user gets the error
        connection.close()
        return _reading_without_room(path)
    except sqlite3.Error:
        pass
    return connection


def _reading_without_room(path: Path) -> sqlite3.Connection:
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size:
        # alone with the database, SQLite keeps the log's index in memory
        connection = sqlite3.connect(path, factory=_WithoutRoom, check_same_thread=False)
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        return connection
    uri = f"file:{quote(str(path))}?immutable=1"
    return sqlite3.connect(uri, uri=True, factory=_WithoutRoom, check_same_thread=False)


def _set_up_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # the driver would begin transactions by itself, and only before some statements; _begin_sqlite does it instead
    connection.isolation_level = None
    # another process may be writing: wait for it rather than fail
    connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    # SQLite checks foreign keys only when asked to, connection by connection
    connection.execute("PRAGMA foreign_keys = ON")


def _without_foreign_keys(connection: sqlite3.Connection, _record: Any) -> None:
    # a table is altered by making it anew, and the old one could not be dropped while others refer to it
    connection.execute("PRAGMA foreign_keys = OFF")


def _begin_sqlite(connection: Connection) -> None:
    # a writer takes the lock at once: a transaction that read first and then wants to write can only fail, not wait
    begin = connection.get_execution_options().get("begin", "BEGIN")
    if begin == _TO_WRITE:
        raw = connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        if isinstance(raw, _WithoutRoom):
            raise DatabaseError(f"{redacted_url(str(connection.engine.url))}: the disk is full", hint=NO_ROOM)
        begin_writing(raw, BUSY_SECONDS, redacted_url(str(connection.engine.url)))
    else:
        connection.exec_driver_sql(begin)


def _use_wal(engine: Engine) -> None:
    # readers and the writer do not block each other; the file remembers it, so once is enough
    raw = engine.raw_connection()
    until = time.monotonic() + BUSY_SECONDS
    try:
        while True:
            try:
                raw.cursor().execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:  # others do the same; SQLite does not wait for this lock
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                    raise
                time.sleep(0.01)
    finally:
        raw.close()


@contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise ConflictError(f"the database refused the change: {error.orig}") from error
    except (UnicodeEncodeError, OverflowError, DataError) as error:
        raise UsageError(f"a database cannot store or search this value: {error}") from error
    except (SQLAlchemyError, sqlite3.Error) as error:  # SQLite's own where we pass SQLAlchemy by
        cause = error.orig if isinstance(error, DBAPIError) else error
        kind = UnavailableError if _passes(error, cause) else DatabaseError
        raise kind(f"{url}: {str(cause).strip()}", hint=_hint(cause)) from error


def _passes(error: Exception, cause: BaseException | None) -> bool:
    """Whether the database may answer in a while. SQLite's own errors are all of one class, and most of them stay."""
    if (code := getattr(cause, "sqlite_errorcode", None)) is not None:
        return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return isinstance(error, (OperationalError, InterfaceError))


_WITHOUT_FILES = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL)
ASK_DOCTOR = "run `reccocktail doctor`"  # where nothing better is known
_BUSY = "try again; if it stays like this, look for a command that hangs"
_READ_ONLY = "the database is open for reading only: commands that change something need one that can be written"
_HINTS = {  # by SQLSTATE: https://www.postgresql.org/docs/current/errcodes-appendix.html
    "25006": _READ_ONLY,
    "53100": "the database server's disk is full",
    "53300": "the server has no connection left: close some, or raise its max_connections",
    "55P03": _BUSY,
    "40P01": _BUSY,
}
_CONNECTION_HINTS = {  # by the server's and libpq's own words
    r'database ".*" does not exist': "create it with `createdb`, or correct the database URL; then `reccocktail init`",
    r"authentication failed|role .* does not exist|no password supplied": "check the user and the password of the database URL",
    r"Connection refused|could not translate host name|failed to resolve host": "check host and port, and that the server runs",
}
_SQLITE_HINTS = {
    sqlite3.SQLITE_NOTADB: "move the file away or restore it, or set RECCOCKTAIL_DATABASE_URL to another",
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_FULL: NO_ROOM,
}


def _hint(error: BaseException | None) -> str:
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return _SQLITE_HINTS.get(code & 0xFF) or ASK_DOCTOR
    if found := _HINTS.get(getattr(error, "sqlstate", None) or ""):
        return found
    refused = str(error)  # a connection that is refused has no code
    return next((hint for words, hint in _CONNECTION_HINTS.items() if re.search(words, refused)), ASK_DOCTOR)
