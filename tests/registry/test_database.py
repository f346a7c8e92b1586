"""Connecting, migrating and checking, on SQLite and PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any

import psycopg
import pytest
from reccocktail.registry import Adapter, Base, Registry, Settings
from reccocktail.registry.catalog.adapters import AdapterFilter
from reccocktail.registry.catalog.filters import BuildFilter
from reccocktail.registry.database import connection as database
from reccocktail.registry.database import migrate
from reccocktail.registry.database import triggers as rules
from reccocktail.registry.database.tables import BaseModelRow, Table
from reccocktail.registry.errors import ConflictError, DatabaseError, UnavailableError, UsageError
from sqlalchemy import create_engine, inspect, make_url

SCHEMAS = Path(__file__).with_name("schemas")
HEAD = "0011"


@pytest.fixture
def url(untouched: Settings) -> str:
    """Of an empty database; on SQLite there is no file yet."""
    untouched.home.mkdir()
    return untouched.database_url


def run_sql(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """The rows of the last statement."""
    rows: list[tuple[Any, ...]] = []
    if url.startswith("sqlite"):
        connection: Any = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    else:
        connection = psycopg.connect(url, autocommit=True)
    for statement in statements:
        cursor = connection.execute(statement)
        rows = cursor.fetchall() if cursor.description else []
    connection.close()
    return rows


def load(url: str, path: Path) -> None:
    """Runs a dump as its database's own tools would."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        connection.executescript(path.read_text())
        connection.close()
    else:
        with psycopg.connect(url) as connection:
            connection.execute(path.read_text().encode())


# --- the tables


def schema(url: str) -> dict[str, Any]:
    """Everything that the database says of its tables, apart from their triggers and the order of things."""
    engine = create_engine(url)
    looked = inspect(engine)
    found = {
        table: {
            "columns": sorted(
                (c["name"], str(c["type"]), c["nullable"], str(c["default"])) for c in looked.get_columns(table)
            ),
            "primary key": looked.get_pk_constraint(table),
            "foreign keys": sorted(map(repr, looked.get_foreign_keys(table))),
            "unique": sorted(map(repr, looked.get_unique_constraints(table))),
            "checks": sorted(map(repr, looked.get_check_constraints(table))),
            "indexes": sorted(
                repr(index | {"dialect_options": {k: str(v) for k, v in index.get("dialect_options", {}).items()}})
                for index in looked.get_indexes(table)
            ),
        }
        for table in looked.get_table_names()
        if table != "alembic_version"
    }
    engine.dispose()
    return found


def made_from_mappings(url: str, request: pytest.FixtureRequest, folder: Path) -> str:
    if url.startswith("sqlite"):
        other = f"sqlite:///{folder}/mapped.sqlite"
    else:
        server = request.getfixturevalue("postgres")
        other = server.url(server.create())
    engine = create_engine(other)
    with engine.begin() as connection:
        Table.metadata.create_all(connection)
    engine.dispose()
    return other


def test_migrating_gives_the_very_tables_of_the_mappings(
    url: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    migrate.upgrade(url)
    assert schema(url) == schema(made_from_mappings(url, request, tmp_path))
    assert migrate.check(url) == migrate.current(url) == HEAD


def test_upgrading_twice_changes_nothing(url: str) -> None:
    assert migrate.upgrade(url) == HEAD
    before = schema(url)
    assert migrate.upgrade(url) == HEAD
    assert schema(url) == before


def test_upgrading_from_all_sides_at_once_does_it_once(url: str, tmp_path: Path) -> None:
    load(url, SCHEMAS / f"0001.{'sqlite' if url.startswith('sqlite') else 'postgresql'}.sql")
    script = "import sys; from reccocktail.registry.database import migrate; print(migrate.upgrade(sys.argv[1]))"
    processes = [
        subprocess.Popen([sys.executable, "-c", script, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert (process.returncode, out) == (0, f"{HEAD}\n"), err
    assert migrate.check(url) == HEAD
    assert run_sql(url, "SELECT count(*) FROM adapter_metrics") == [(3,)]


def test_two_upgrades_in_one_process_do_it_once(url: str) -> None:
    start = Barrier(4)

    def upgrade(_: int) -> str:
        start.wait()
        return migrate.upgrade(url)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(upgrade, range(4))) == [HEAD] * 4


# --- drift


DRIFTS = {
    "a column dropped": "ALTER TABLE domains DROP COLUMN trainer",
    "a column added": "ALTER TABLE adapters ADD COLUMN extra VARCHAR",
    "an index dropped": "DROP INDEX ix_events_subject_id",
    "an extra table": "CREATE TABLE extra (id INTEGER)",
}


ONLY_POSTGRESQL = {
    "a check dropped": "ALTER TABLE builds DROP CONSTRAINT ck_builds_digest",
    "a check weakened": "ALTER TABLE adapters DROP CONSTRAINT ck_adapters_version, "
    "ADD CONSTRAINT ck_adapters_version CHECK (version > 0 OR true)",
    "a partial index emptied": "DROP INDEX uq_builds_open_key; "
    "CREATE UNIQUE INDEX uq_builds_open_key ON builds (key) WHERE false",
    "a primary key dropped": "ALTER TABLE aliases DROP CONSTRAINT pk_aliases",
    "foreign keys switched off": "ALTER TABLE aliases DISABLE TRIGGER ALL",
    "deletions rewritten": "CREATE RULE nothing AS ON DELETE TO events DO INSTEAD NOTHING",
    "a default added": "ALTER TABLE adapters ALTER created_by SET DEFAULT 'eve'",
    "a function of the rules set loose": "ALTER FUNCTION reccocktail_builds_by_event() RESET search_path",
}
ONLY_SQLITE = {
    "a check weakened": ("UPDATE sqlite_master SET sql = replace(sql, 'version > 0', 'version > -9') WHERE name = 'adapters'"),
    "a partial index emptied": ("DROP INDEX uq_builds_open_key; CREATE UNIQUE INDEX uq_builds_open_key ON builds (key)"
                                " WHERE status = 'none'"),
}  # fmt: skip


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
@pytest.mark.parametrize("statement", ONLY_POSTGRESQL.values(), ids=ONLY_POSTGRESQL.keys())
def test_what_alembic_does_not_compare_is_found_on_postgresql(url: str, statement: str) -> None:
    migrate.upgrade(url)
    assert migrate.check(url) == HEAD
    run_sql(url, statement)
    with pytest.raises(DatabaseError, match="differs from its revision"):
        migrate.check(url)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("statement", ONLY_SQLITE.values(), ids=ONLY_SQLITE.keys())
def test_what_alembic_does_not_compare_is_found_on_sqlite(url: str, statement: str) -> None:
    migrate.upgrade(url)
    assert migrate.check(url) == HEAD
    run_sql(url, "PRAGMA writable_schema = ON", *statement.split("; "))
    with pytest.raises(DatabaseError, match="differs from its revision"):
        migrate.check(url)


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_what_others_keep_in_the_same_schema_is_left_alone(url: str) -> None:
    run_sql(
        url,
        'CREATE TABLE "Order" (id int)',
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$",
        'CREATE TRIGGER "Order_audit" AFTER INSERT ON "Order" FOR EACH ROW EXECUTE FUNCTION audit()',
    )
    migrate.upgrade(url)
    migrate.downgrade(url, "0001", allow_loss=True)
    migrate.upgrade(url)
    assert run_sql(url, "SELECT tgname FROM pg_trigger WHERE tgname = 'Order_audit'") == [("Order_audit",)]


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_a_schema_of_our_own_is_the_urls_to_name(url: str) -> None:
    run_sql(url, "CREATE SCHEMA reg")
    ours = f"{url}&options=-csearch_path%3Dreg"
    migrate.upgrade(ours)
    assert migrate.check(ours) == HEAD
    assert migrate.current(url) is None
    assert run_sql(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'reg'")[0][0] > 10


@pytest.mark.parametrize("statement", DRIFTS.values(), ids=DRIFTS.keys())
def test_a_table_that_differs_from_its_revision_is_found(url: str, statement: str) -> None:
    migrate.upgrade(url)
    run_sql(url, statement)
    with pytest.raises(DatabaseError, match="differs from its revision"):
        migrate.check(url)


def test_a_rule_that_is_missing_altered_or_foreign_is_found(url: str) -> None:
    migrate.upgrade(url)
    sqlite = url.startswith("sqlite")
    on, restore = ("", "") if sqlite else (" ON events", "")
    body = "BEGIN SELECT 1; END" if sqlite else "FOR EACH ROW EXECUTE FUNCTION reccocktail_refuse('x')"
    run_sql(url, f"DROP TRIGGER events_stay{on}{restore}")
    with pytest.raises(DatabaseError, match="the rule events_stay is missing"):
        migrate.check(url)
    run_sql(url, f"CREATE TRIGGER events_stay BEFORE DELETE ON events {body}")
    with pytest.raises(DatabaseError, match="the rule events_stay was altered"):
        migrate.check(url)
    run_sql(url, f"CREATE TRIGGER more BEFORE DELETE ON events {body}")
    with pytest.raises(DatabaseError, match="the rule more is not part of the schema") as caught:
        migrate.check(url)
    assert "(and 1 more)" in str(caught.value)
    assert "operations.md" in (caught.value.hint or "")


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_a_rule_that_is_switched_off_is_found(url: str) -> None:
    migrate.upgrade(url)
    run_sql(url, "ALTER TABLE events DISABLE TRIGGER events_stay")
    with pytest.raises(DatabaseError, match="the rule events_stay was altered"):
        migrate.check(url)


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_a_rules_function_that_was_rewritten_is_found(url: str) -> None:
    migrate.upgrade(url)
    run_sql(
        url,
        "CREATE OR REPLACE FUNCTION reccocktail_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RETURN NEW; END $$",
    )
    with pytest.raises(DatabaseError, match="the rule reccocktail_refuse was altered"):
        migrate.check(url)


# --- released schemas, with data in them


@pytest.fixture(params=sorted({path.name.partition(".")[0] for path in SCHEMAS.iterdir()}))
def released(request: pytest.FixtureRequest, url: str) -> str:
    """The URL of a database as an earlier version left it."""
    load(url, SCHEMAS / f"{request.param}.{'sqlite' if url.startswith('sqlite') else 'postgresql'}.sql")
    assert migrate.current(url) == request.param
    return url


def opened(url: str, folder: Path) -> Registry:
    return Registry.create(
        Settings.load(home=folder / "home", database_url=url, cwd=folder, environ={"HOME": str(folder)}), actor="bob"
    )


def test_a_released_schema_is_refused_until_it_is_upgraded(released: str) -> None:
    with pytest.raises(DatabaseError, match=f"is at revision 0001, but this version needs {HEAD}") as caught:
        migrate.require_head(released)
    assert "back up the database" in (caught.value.hint or "")


def test_a_released_schema_is_upgraded_with_its_data(released: str, tmp_path: Path) -> None:
    tables = ("base_models", "domains", "builds", "build_inputs", "publications")
    before = {table: run_sql(released, f"SELECT * FROM {table}") for table in tables}
    numbers = run_sql(released, "SELECT id, digest, version, is_current, archived_at FROM adapters ORDER BY id")
    known = "SELECT id, kind, subject, created_at, created_by FROM events WHERE created_by <> 'db upgrade' ORDER BY id"
    kinds = run_sql(released, known)
    migrate.upgrade(released)
    assert migrate.check(released) == HEAD
    after = {table: run_sql(released, f"SELECT * FROM {table}") for table in tables}
    after["builds"] = [row[:-5] for row in after["builds"]]  # without the columns that were added
    after["publications"] = [row[:-3] for row in after["publications"]]
    after |= {table: [row[:-1] for row in after[table]] for table in ("domains", "base_models")}
    assert after == before
    assert run_sql(released, "SELECT id, digest, version, is_current, archived_at FROM adapters ORDER BY id") == numbers
    assert run_sql(released, known) == kinds

    with opened(released, tmp_path) as registry:
        adapters = registry.adapters
        assert adapters.resolve("beauty").ref == "beauty@v2"
        assert adapters.resolve("beauty@candidate").ref == "beauty@v3"
        assert adapters.resolve("spirit", base="tiny").ref == "spirit@v1"
        assert adapters.resolve("beauty@v1").archived_at is not None
        assert [a.ref for a in adapters.list(AdapterFilter(tags=["nightly"]))] == ["beauty@v1"]
        assert [a.ref for a in adapters.list(AdapterFilter(text="GRÖSSE 8"))] == ["beauty@v1"]
        moves = [(e.kind, e.detail.get("from"), e.detail.get("to"), e.created_by) for e in adapters.log("beauty")]
        assert moves == [
            ("adapter.archived", None, None, "ann"),
            ("alias.set", None, "beauty@v3", "ann"),
            ("alias.moved", "beauty@v1", "beauty@v2", "ann"),
            ("alias.set", None, "beauty@v1", "ann"),
            *[("adapter.added", None, None, "ann")] * 3,
        ]
        # what stood for the domain is served
        newest = registry.builds.newest_succeeded("beauty")
        assert [(a.alias, a.build) for a in registry.serving.aliases()] == [("production", newest.id)]
        (moved,) = registry.serving.history("beauty")
        assert (moved.build, moved.previous, moved.by) == (newest.id, None, "db upgrade")
        # and goes on where it was
        adapters.alias("beauty@v3", "champion")
        assert adapters.restore("beauty@v1").archived_at is None
        (waiting,) = registry.builds.list(BuildFilter(domain="beauty", status="queued"))
        assert registry.builds.cancel(waiting.id).status == "cancelled"


def test_what_was_champion_before_the_upgrade_is_known_after_it(released: str, tmp_path: Path) -> None:
    first, second = (
        moment if isinstance(moment, datetime) else datetime.fromisoformat(moment).replace(tzinfo=UTC)
        for (moment,) in run_sql(
            released, "SELECT created_at FROM events WHERE subject = 'beauty@champion' ORDER BY id"
        )
    )
    with opened(released, tmp_path) as registry:
        assert registry.adapters.resolve("beauty", at=first).ref == "beauty@v1"
        assert registry.adapters.resolve("beauty", at=second).ref == "beauty@v2"


def test_what_the_first_schema_took_by_hand_is_upgraded_too(url: str, tmp_path: Path) -> None:
    load(url, SCHEMAS / f"0001.{'sqlite' if url.startswith('sqlite') else 'postgresql'}.sql")
    event = "INSERT INTO events (id, kind, subject, detail, created_at, created_by) SELECT"
    run_sql(
        url,
        "UPDATE aliases SET adapter_id = (SELECT id FROM adapters WHERE digest ="
        " (SELECT digest FROM adapters a JOIN aliases l ON l.adapter_id = a.id WHERE l.name = 'candidate')"
        " AND base_id = aliases.base_id AND domain_id = aliases.domain_id)"
        " WHERE name = 'champion' AND domain_id = (SELECT id FROM domains WHERE name = 'beauty')",
        "INSERT INTO aliases SELECT base_id, domain_id, 'by-hand', adapter_id, created_at, 'eve' FROM aliases"
        " WHERE name = 'candidate'",
        f"{event} 0, 'note', 'zero', '{{}}', created_at, 'eve' FROM events WHERE id = 1",
        f"{event} 9001, 'adapter.added', 'nobody', '[]', created_at, 'eve' FROM events WHERE id = 1",
        f"{event} 9002, 'alias.moved', 'beauty@x', '{{\"base\": \"tiny\", \"to\": \"beauty@v99\"}}', created_at, 'eve'"
        " FROM events WHERE id = 1",
        """UPDATE adapters SET metrics = '{"a": null, "b": "x", "c": true, "HR@1": 0.25}', tags = '[1, null, "odd"]'
        WHERE id = (SELECT min(id) FROM adapters)""",
    )
    count = run_sql(url, "SELECT count(*) FROM events")[0][0]
    migrate.upgrade(url)
    assert migrate.check(url) == HEAD
    with opened(url, tmp_path) as registry:
        assert registry.adapters.resolve("beauty@champion").ref == "beauty@v3"
        assert registry.adapters.resolve("beauty@by-hand").ref == "beauty@v3"
        explained = [event for event in registry.adapters.log("beauty") if event.detail.get("found")]
        assert {event.subject for event in explained} == {"beauty@champion", "beauty@by-hand"}
        assert len(registry.events.list(limit=1000)) == count + 3
        kinds = {event.id: event.kind for event in registry.events.list(limit=1000)}
        assert (kinds[0], kinds[9001], kinds[9002]) == ("note", "adapter.added.unreadable", "alias.moved.unreadable")
        assert [a.ref for a in registry.adapters.list(AdapterFilter(tags=["odd"]))] == ["spirit@v1"]


def test_recipe_files_that_domains_name_are_read_in_and_those_that_are_gone_are_reported(
    url: str, tmp_path: Path
) -> None:
    load(url, SCHEMAS / f"0001.{'sqlite' if url.startswith('sqlite') else 'postgresql'}.sql")
    (tmp_path / "Our Mix.yaml").write_text("adaptive: {template: ours.yaml, prompts: 7}\n")
    (tmp_path / "ours.yaml").write_text("name: ours\n")
    (tmp_path / "average.toml").write_text("coefficients = {spirit = 0.4, ingredient = 0.6}\n")
    (tmp_path / "broken.yaml").write_text("[1, 2\n")
    files = {"a": "Our Mix.yaml", "b": "Our Mix.yaml", "c": "average.toml", "d": "gone.yaml", "e": "broken.yaml"}
    row = "INSERT INTO domains (name, role, title, recipe, created_at, created_by)"
    run_sql(
        url,
        *(
            f"{row} SELECT '{name}', 'ingredient', '', '{tmp_path / file}', max(created_at), 'ann' FROM domains"
            for name, file in files.items()
        ),
        "UPDATE domains SET recipe = 'average' WHERE name = 'beauty'",
    )
    notes: list[str] = []
    migrate.upgrade(url, notes=notes)
    assert migrate.check(url) == HEAD
    for file in tmp_path.glob("*.yaml"):
        file.unlink()
    with opened(url, tmp_path) as registry:
        recipes = {row.name: row.recipe for row in registry.domains.list()}
        assert recipes["a"] == recipes["b"] == "our-mix@v1"
        assert registry.recipes.get("our-mix").content == {"adaptive": {"template": "ours@v1", "prompts": 7}}
        assert registry.templates.get("ours@v1").content == {"name": "ours"}
        assert recipes["beauty"] == "average"  # one that ships keeps its name, and a file of that name gets another
        assert registry.recipes.get(recipes["c"] or "").content == {"coefficients": {"spirit": 0.4, "ingredient": 0.6}}
        for name in ("d", "e"):
            assert recipes[name] == str(tmp_path / files[name])
            assert [f"domain {name}: its recipe {recipes[name]} is not" in note for note in notes].count(True) == 1
        (event,) = registry.events.list(kind="domain.changed", subject="a")
        assert event.detail == {"recipe": "our-mix@v1", "read_from": str(tmp_path / "Our Mix.yaml")}
        registry.domains.add("d", title="still works", recipe="our-mix@v1")
    # going back keeps the names, which mean nothing there, and coming again reports them
    migrate.downgrade(url, "0005", allow_loss=True)
    assert run_sql(url, "SELECT recipe FROM domains WHERE name = 'a'") == [("our-mix@v1",)]
    again: list[str] = []
    migrate.upgrade(url, notes=again)
    assert any("domain a: its recipe our-mix@v1 is not" in note for note in again)


def test_an_upgrade_that_fails_leaves_the_schema_it_found(released: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = schema(released)

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(rules, "install", fail)
    with pytest.raises(OSError, match="no space left"):
        migrate.upgrade(released)
    assert schema(released) == before
    assert migrate.current(released) == "0001"


# --- going back


def test_going_back_one_schema_keeps_what_the_older_one_knows(
    registry: Registry, base: Base, add: Callable[..., Adapter]
) -> None:
    url = registry.settings.database_url
    registry.domains.add("beauty")
    add("beauty", 1, tags=["nightly"])
    add("beauty", 2)
    registry.adapters.alias("beauty@v1", "champion")
    registry.adapters.alias("beauty@v2", "candidate")
    registry.adapters.remove_alias("beauty@candidate")
    before = schema(url)
    events = registry.events.list()
    registry.close()
    assert migrate.downgrade(url, "0001", allow_loss=True) == "0001"
    assert migrate.current(url) == "0001"
    with pytest.raises(DatabaseError, match="is at revision 0001"):
        Registry.open(registry.settings)
    migrate.upgrade(url)
    assert schema(url) == before
    with Registry.open(registry.settings) as again:
        assert again.adapters.resolve("beauty").ref == "beauty@v1"
        assert [a.ref for a in again.adapters.list(AdapterFilter(tags=["nightly"]))] == ["beauty@v1"]
        assert again.events.list() == events
        again.adapters.alias("beauty@v2", "champion")


def test_going_back_where_data_is_lost_says_so_and_wants_a_yes(url: str) -> None:
    migrate.upgrade(url)
    with pytest.raises(
        UsageError,
        match=r"loses data: 0011: webhooks.*; 0010: the names of requests.*; 0008: the tokens of servers.*; 0006: what was measured.*recipes and templates.*what people edited.*which builds are served.*the gates of domains.*results were removed.*; 0005: which builds are experiments.*; 0004: publications of adapters.*; 0003: what workers said.*; 0001: everything",
    ) as caught:
        migrate.downgrade(url, "base")
    assert "--allow-data-loss" in (caught.value.hint or "")
    assert migrate.check(url) == HEAD
    migrate.downgrade(url, "base", allow_loss=True)
    assert migrate.current(url) is None
    migrate.upgrade(url)
    assert migrate.check(url) == HEAD


def test_going_back_goes_on_from_an_older_revision(url: str) -> None:
    migrate.upgrade(url)
    migrate.downgrade(url, "0001", allow_loss=True)
    with pytest.raises(UsageError, match=f"is at revision 0001, and {HEAD} is newer"):
        migrate.downgrade(url, HEAD)
    assert migrate.downgrade(url, "0001", allow_loss=True) == "0001"
    migrate.downgrade(url, "base", allow_loss=True)
    with pytest.raises(DatabaseError, match="has no tables yet"):
        migrate.downgrade(url, "0001", allow_loss=True)


def test_a_revision_that_does_not_exist_is_named(url: str) -> None:
    migrate.upgrade(url)
    with pytest.raises(UsageError, match="no revision '7'") as caught:
        migrate.downgrade(url, "7")
    assert caught.value.hint == "known are base, 0001, 0002, 0003, 0004, 0005, 0006, 0007, 0008, 0009, 0010, 0011"


def test_a_migrations_file_begins_with_its_revision() -> None:
    assert migrate._revisions() == [script.revision for script in migrate._scripts().walk_revisions()][::-1]


def test_every_migration_says_what_going_back_loses() -> None:
    for script in migrate._scripts().walk_revisions():
        assert script.module.LOSES is None or len(script.module.LOSES) > 10


# --- what is not there, or not ours


def test_a_newer_database_is_refused_with_both_revisions(registry: Registry) -> None:
    run_sql(registry.settings.database_url, "UPDATE alembic_version SET version_num = '9999'")
    for attempt in (Registry.open, Registry.create):
        with pytest.raises(DatabaseError, match=rf"9999.*its own newest is {HEAD}") as caught:
            attempt(registry.settings)
        assert caught.value.hint == "upgrade reccocktail"


def test_an_empty_database_is_not_migrated_by_opening_it(url: str) -> None:
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).touch()
    assert migrate.current(url) is None
    with pytest.raises(DatabaseError, match="has no tables yet") as caught:
        migrate.check(url)
    assert caught.value.hint == "run `reccocktail init`"


def test_a_write_that_fails_half_way_leaves_nothing(url: str) -> None:
    migrate.upgrade(url)
    place = database.Database(url)
    row = {"source": "s", "digest": "d", "architecture": "a", "dtype": "F32", "parameters": 1, "bytes": 1}

    def add_twice() -> None:
        with place.writing() as session:
            session.add(BaseModelRow(name="x", **row))
            session.flush()
            session.add(BaseModelRow(name="x", **row))

    with pytest.raises(ConflictError, match="the database refused the change"):
        add_twice()
    with place.reading() as session:
        assert session.query(BaseModelRow).count() == 0
    place.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "r.sqlite"


def test_a_database_that_is_not_there_is_not_made_by_looking(file: Path) -> None:
    with pytest.raises(DatabaseError, match="there is no database"):
        migrate.current(f"sqlite:///{file}")
    assert not file.exists()


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=f"{tmp_path}/none"):
        migrate.upgrade(f"sqlite:///{tmp_path}/none/r.sqlite")


def test_a_file_that_is_no_database_is_refused(file: Path) -> None:
    file.write_bytes(b"not a database" * 100)
    for attempt in (migrate.current, migrate.upgrade):
        with pytest.raises(DatabaseError, match="not a database") as caught:
            attempt(f"sqlite:///{file}")
        assert "move the file away" in (caught.value.hint or "")


def test_a_server_that_is_not_there_is_named_and_its_password_is_not(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"postgresql://ann:\*\*\*@") as caught:
        migrate.current(f"postgresql://ann:S3CRET@/r?host={tmp_path}")
    assert "S3CRET" not in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("bad", ["", "nonsense", "postgresql+nosuch://x"])
def test_a_url_that_cannot_be_used_is_refused(bad: str) -> None:
    with pytest.raises(DatabaseError, match="cannot be used as a database URL"):
        migrate.current(bad)


@pytest.mark.parametrize("url", ["mysql://ann@db/r", "nosuch://x"])
def test_a_database_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(DatabaseError, match=f"{url.partition(':')[0]} is not supported"):
        migrate.current(url)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_that_would_keep_nothing_is_refused(url: str) -> None:
    for attempt in (migrate.current, migrate.upgrade):
        with pytest.raises(DatabaseError, match="keeps nothing"):
            attempt(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:p@ss:S3CRET@db/r", "postgresql://ann:p@S3CRET@db/r", "host=db password=S3CRET", "ann:S3CRET@db/r",
        "postgresql:/ann:S3CRET@db/r", "postgresql://ann:S3CRET@db:port/r",
    ],
)  # fmt: skip
def test_no_part_of_a_password_is_shown_however_the_url_is_broken(url: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        migrate.current(url)
    assert "S3CRET" not in f"{caught.value} {caught.value.hint}"


def test_a_password_in_the_url_is_never_shown() -> None:
    with pytest.raises(DatabaseError) as caught:
        migrate.current("nosuch://ann:S3CRET@db/r")
    assert "S3CRET" not in str(caught.value)


def test_the_older_name_of_postgresql_urls_is_understood(postgres: Any) -> None:
    assert migrate.current(postgres.url().replace("postgresql://", "postgres://")) is None


def test_sqlite_is_set_up_for_many_processes(file: Path) -> None:
    migrate.upgrade(f"sqlite:///{file}")
    place = database.Database(f"sqlite:///{file}")
    with place.reading() as session:
        pragmas = [
            session.connection().exec_driver_sql(f"PRAGMA {p}").scalar()
            for p in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        ]
    place.close()
    assert pragmas == ["wal", 1, 30_000, 2]


def test_sqlites_writers_stand_in_line(file: Path) -> None:
    """A writer that waits longer than SQLite would, or than it sleeps, gets its turn when the one before it is done."""
    migrate.upgrade(f"sqlite:///{file}")
    place = database.Database(f"sqlite:///{file}")
    order: list[str] = []
    first, done = Event(), Event()

    def hold() -> None:
        with place.writing() as session:
            session.connection()
            first.set()
            done.wait(60)
            order.append("first")

    def follow() -> None:
        with place.writing() as session:
            session.connection()
            order.append("second")

    holder, follower = Thread(target=hold), Thread(target=follow)
    holder.start()
    assert first.wait(60)
    follower.start()
    follower.join(0.3)
    assert follower.is_alive()
    with place.reading() as session:  # readers wait for nobody
        assert session.query(BaseModelRow).count() == 0
    done.set()
    holder.join(60)
    follower.join(60)
    place.close()
    assert order == ["first", "second"]


def test_a_writer_that_never_ends_is_waited_for_only_so_long(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate.upgrade(f"sqlite:///{file}")
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    one, two = (database.Database(f"sqlite:///{file}") for _ in range(2))
    impatient = pytest.raises(
        UnavailableError, match=r"waited 0\.2 seconds to write.*this process.*nothing was committed"
    )
    with one.writing() as session, impatient as caught:
        session.connection()
        with two.writing() as other:
            other.connection()
    assert "transaction" in (caught.value.hint or "")
    one.close()
    two.close()


def test_a_process_forked_in_the_middle_of_a_write_keeps_nobody_waiting(file: Path) -> None:
    script = """
import os, sys, time
from reccocktail.registry.database.connection import Database
place = Database(sys.argv[1])
with place.writing() as session:
    session.connection()
    child = os.fork()
    if not child:
        time.sleep(600)
        os._exit(0)
with Database(sys.argv[1]).writing() as session:
    session.connection()
print(os.waitpid(child, os.WNOHANG) == (0, 0))  # it is there all the while
os.kill(child, 9)
"""
    migrate.upgrade(f"sqlite:///{file}")
    done = subprocess.run(
        [sys.executable, "-c", script, f"sqlite:///{file}"], capture_output=True, text=True, timeout=240, check=True
    )
    assert done.stdout == "True\n"


# --- databases that can only be read


READING = """
import sys
from pathlib import Path
from reccocktail.registry import Registry, Settings
from reccocktail.registry.catalog.adapters import AdapterFilter
settings = Settings.load(home=sys.argv[1], database_url=sys.argv[2] or None, cwd=Path("/"), environ={"HOME": "/"})
with Registry.open(settings) as registry:
    found = [registry.adapters.resolve("beauty@champion").ref, *(a.ref for a in registry.adapters.list(AdapterFilter(text="beau")))]
    found += [event.kind for event in registry.adapters.log("beauty")]
    found += [str(registry.adapters.reached(registry.adapters.resolve("beauty")).build_count)]
    registry.store.verify_tree(registry.adapters.resolve("beauty").digest)
    print(" ".join(found))
    try:
        registry.domains.add("more")
    except Exception as error:
        print(type(error).__name__, error.hint)
"""
FOUND = "beauty@v1 beauty@v1 alias.set adapter.added 0"
REFUSAL = (
    "DatabaseError the database is open for reading only: commands that change something need one that can be written"
)


@pytest.fixture
def stocked(registry: Registry, base: Base, add: Callable[..., Adapter]) -> Registry:
    registry.domains.add("beauty")
    add("beauty", 1)
    registry.adapters.alias("beauty@v1", "champion")
    return registry


@pytest.fixture
def reading_process(stocked: Registry, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Runs the reading commands without the privilege to write where permissions do not let it."""
    python = [sys.executable, "-c", READING]
    # writing past permissions is root's privilege; without it the owner's own bits count
    drop = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if os.geteuid() == 0 else []

    def run(*words: str) -> str:
        done = subprocess.run([*drop, *python, *words], capture_output=True, text=True, check=False, cwd="/")
        return (done.stdout + done.stderr).strip()

    yield run
    for path in (tmp_path / "home", *(tmp_path / "home").rglob("*")):
        if path.is_dir():
            path.chmod(0o755)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("log", ["checkpointed", "open"])
def test_reading_works_where_the_sqlite_file_cannot_be_written(
    stocked: Registry, reading_process: Callable[..., str], log: str
) -> None:
    home = stocked.settings.home
    holder = None
    if log == "open":  # somebody else, who may write, has the database open
        holder = sqlite3.connect(home / "registry.sqlite")
        holder.execute("SELECT count(*) FROM adapters").fetchall()
    stocked.close()
    for path in (*home.rglob("*"), home):
        path.chmod(path.stat().st_mode & ~0o222)
    assert reading_process(str(home), "").splitlines() == [FOUND, REFUSAL]
    if holder:
        holder.close()


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_reading_works_where_postgresql_takes_no_writes(stocked: Registry, postgres: Any) -> None:
    name = stocked.settings.database_url.partition("?")[0].rpartition("/")[2]
    with postgres.connect() as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    stocked.close()
    words = [str(stocked.settings.home), stocked.settings.database_url]
    done = subprocess.run([sys.executable, "-c", READING, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [FOUND, REFUSAL]


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"database": "nowhere"}, "createdb"),
        ({"username": "nobody"}, "user"),
        ({"port": 1, "host": "127.0.0.1"}, "port"),
    ],
    ids=["database", "user", "port"],
)
def test_a_connection_that_is_refused_says_what_to_mend(url: str, wrong: dict[str, Any], word: str) -> None:
    elsewhere = make_url(url)
    if "port" in wrong:
        elsewhere = elsewhere.set(query={})  # which may name a socket
    with pytest.raises(DatabaseError) as caught:
        migrate.check(elsewhere.set(**wrong).render_as_string(hide_password=False))
    assert word in (caught.value.hint or "")
