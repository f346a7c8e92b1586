from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic import command
from reccocktail.registry import Adapter, Base, Registry, database
from reccocktail.registry.errors import ConflictError, DatabaseError
from reccocktail.registry.tables import BaseModelRow, Table
from sqlalchemy import create_engine


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/r.sqlite"


@pytest.fixture
def sql(registry: Registry, base: Base, add: Callable[..., Adapter]) -> Iterator[sqlite3.Connection]:
    """A plain connection, behind our back, to a registry with two spirits, an ingredient and a queued build."""
    registry.domains.add("beauty")
    add("spirit", 1)
    add("spirit", 2)
    add("beauty", 3)
    registry.adapters.alias("beauty@v1", "champion")
    registry.builds.request("beauty", base.name, "k", {}, {})
    connection = sqlite3.connect(registry.settings.home / "registry.sqlite")
    connection.execute("PRAGMA foreign_keys = ON")
    yield connection
    connection.close()


def copy_of_row(table: str, changes: str) -> str:
    """SQL that inserts the newest row of the table again, with columns replaced."""
    columns = {c.name: c.name for c in Table.metadata.tables[table].columns if c.name != "id" or table == "builds"}
    for change in changes.split(", "):
        name, _, value = change.partition("=")
        columns[name] = value
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) "
        f"SELECT {', '.join(columns.values())} FROM {table} ORDER BY rowid DESC LIMIT 1"
    )


@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param("UPDATE adapters SET is_current = 1 WHERE role = 'spirit'", id="a second current spirit"),
        pytest.param("UPDATE adapters SET is_current = 1 WHERE role = 'ingredient'", id="a current ingredient"),
        pytest.param("UPDATE adapters SET archived_at = created_at WHERE is_current", id="an archived current spirit"),
        pytest.param(copy_of_row("adapters", "digest='d'"), id="a version twice"),
        pytest.param(copy_of_row("adapters", "version=9"), id="the same content twice"),
        pytest.param(copy_of_row("adapters", "version=0, digest='d'"), id="version zero"),
        pytest.param(copy_of_row("adapters", "version=9, digest='d', role='spirit'"), id="a spirit in a domain"),
        pytest.param(copy_of_row("adapters", "version=9, digest='d', base_id=7"), id="an adapter without a base"),
        pytest.param("UPDATE aliases SET adapter_id = 1", id="an alias to another domain's version"),
        pytest.param("UPDATE aliases SET adapter_id = 99", id="an alias to nothing"),
        pytest.param("DELETE FROM adapters WHERE role = 'ingredient'", id="an aliased version removed"),
        pytest.param(copy_of_row("aliases", "adapter_id=3"), id="an alias twice"),
        pytest.param(copy_of_row("domains", "title='x'"), id="a domain twice"),
        pytest.param(copy_of_row("domains", "name='x', role='other'"), id="an unknown role"),
        pytest.param(copy_of_row("domains", "name='x', role='spirit'"), id="a second domain of spirits"),
        pytest.param(copy_of_row("base_models", "digest='d'"), id="a base model twice"),
        pytest.param(copy_of_row("builds", "id='x'"), id="a second queued build of a key"),
        pytest.param("UPDATE builds SET status = 'done'", id="an unknown status"),
        pytest.param("UPDATE builds SET status = 'succeeded'", id="a success without a result"),
        pytest.param("UPDATE builds SET status = 'running'", id="a running build without a lease"),
        pytest.param("INSERT INTO build_inputs VALUES ('x', 1, '', '')", id="an input of no build"),
        pytest.param("INSERT INTO publications VALUES (1, 'x', 'r', 'c', NULL, '', '')", id="a publication of no build"),
        pytest.param("UPDATE adapters SET created_by = NULL", id="a row of no one"),
    ],
)  # fmt: skip
def test_the_database_itself_refuses(sql: sqlite3.Connection, attempt: str) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        sql.execute(attempt)


def test_what_the_rules_allow_is_allowed(sql: sqlite3.Connection) -> None:
    """The attempts above fail for their rule, not for how they are written."""
    sql.execute(copy_of_row("adapters", "version=9, digest='d'"))
    sql.execute(copy_of_row("domains", "name='x'"))
    sql.execute("UPDATE builds SET status = 'failed'")
    sql.execute(copy_of_row("builds", "id='x', status='queued'"))
    sql.execute(copy_of_row("builds", "id='y', status='cancelled'"))


def test_migrating_gives_the_very_tables_of_the_mappings(url: str, tmp_path: Path) -> None:
    database.upgrade(url)
    mapped = f"sqlite:///{tmp_path}/mapped.sqlite"
    with create_engine(mapped).begin() as connection:
        Table.metadata.create_all(connection)

    def schema(name: str) -> dict[str, list[str]]:
        query = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name != 'alembic_version'"
        with sqlite3.connect(tmp_path / name) as connection:
            # the order of constraints within a table means nothing
            return {
                table: sorted(line.strip(" ,\t") for line in text.splitlines())
                for table, text in connection.execute(query)
            }

    assert schema("r.sqlite") == schema("mapped.sqlite")
    assert database.check(url) == database.current(url)


def test_upgrading_twice_changes_nothing(url: str) -> None:
    assert database.upgrade(url) == database.upgrade(url)


def test_the_trunk_can_be_taken_down_again(url: str) -> None:
    database.upgrade(url)
    config = database._alembic()
    with create_engine(url).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert database.current(url) is None
    database.upgrade(url)
    assert database.check(url)


def test_a_table_that_differs_from_its_revision_is_found(url: str, tmp_path: Path) -> None:
    database.upgrade(url)
    with sqlite3.connect(tmp_path / "r.sqlite") as connection:
        connection.execute("ALTER TABLE adapters DROP COLUMN note")
    with pytest.raises(DatabaseError, match="differs from its revision"):
        database.check(url)


def test_a_newer_database_is_refused_with_both_revisions(registry: Registry) -> None:
    with sqlite3.connect(registry.settings.home / "registry.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for attempt in (Registry.open, Registry.create):
        with pytest.raises(DatabaseError, match=r"9999.*its own newest is 0001") as caught:
            attempt(registry.settings)
        assert caught.value.hint == "upgrade reccocktail"


def test_an_empty_database_is_not_migrated_by_opening_it(url: str, tmp_path: Path) -> None:
    (tmp_path / "r.sqlite").touch()
    assert database.current(url) is None
    with pytest.raises(DatabaseError, match="has no tables yet") as caught:
        database.check(url)
    assert caught.value.hint == "run `reccocktail init`"


def test_a_database_that_is_not_there_is_not_made_by_looking(url: str, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="there is no database"):
        database.current(url)
    assert not (tmp_path / "r.sqlite").exists()


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=f"{tmp_path}/none"):
        database.upgrade(f"sqlite:///{tmp_path}/none/r.sqlite")


def test_a_file_that_is_no_database_is_refused(url: str, tmp_path: Path) -> None:
    (tmp_path / "r.sqlite").write_bytes(b"not a database" * 100)
    for attempt in (database.current, database.upgrade):
        with pytest.raises(DatabaseError, match="not a database") as caught:
            attempt(url)
        assert "move the file away" in (caught.value.hint or "")


@pytest.mark.parametrize("bad", ["", "nonsense", "nosuch://x", "postgresql+nosuch://x"])
def test_a_url_that_cannot_be_used_is_refused(bad: str) -> None:
    with pytest.raises(DatabaseError, match="cannot be used as a database URL"):
        database.current(bad)


def test_a_password_in_the_url_is_never_shown() -> None:
    with pytest.raises(DatabaseError) as caught:
        database.current("nosuch://ann:S3CRET@db/r")
    assert "S3CRET" not in str(caught.value)


def test_a_write_that_fails_half_way_leaves_nothing(url: str) -> None:
    database.upgrade(url)
    place = database.Database(url)
    row = {"source": "s", "digest": "d", "architecture": "a", "dtype": "F32", "parameters": 1, "bytes": 1}

    def add_twice() -> None:
        with place.writing() as session:
            session.add(BaseModelRow(name="x", **row))
            session.flush()
            session.add(BaseModelRow(name="x", **row))

    with pytest.raises(ConflictError, match="UNIQUE"):
        add_twice()
    with place.reading() as session:
        assert session.query(BaseModelRow).count() == 0
    place.close()


def test_sqlite_is_set_up_for_many_processes(url: str) -> None:
    database.upgrade(url)
    place = database.Database(url)
    with place.reading() as session:
        pragmas = [
            session.connection().exec_driver_sql(f"PRAGMA {p}").scalar()
            for p in ("journal_mode", "foreign_keys", "busy_timeout")
        ]
    place.close()
    assert pragmas == ["wal", 1, 30_000]
