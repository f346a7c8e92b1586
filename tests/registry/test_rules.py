"""What the database itself refuses, on SQLite and PostgreSQL, however the statement came to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from reccocktail.registry import Adapter, Registry, Settings
from reccocktail.registry.catalog.evaluations import Measurement, Weights
from reccocktail.registry.catalog.gates import Requirement
from reccocktail.registry.catalog.registration import Labels
from reccocktail.registry.database.tables import Table
from sqlalchemy import make_url

Sql = Any


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    """As everywhere, but grouped: what is refused changes nothing, so that one registry does for all attempts."""
    return request.param


Make = Callable[..., Path]


def fill(registry: Registry, folder: Path, make_base: Make, make_adapter: Make) -> None:
    """Ids by what is there: two spirits (1, 2), beauty v1 to v3 (3 to 5), toys v1 (6), builds `done` and `open`."""
    base = registry.bases.add("tiny", make_base(folder / "tiny"), source="org/tiny", revision="c0ffee")
    folders = {seed: make_adapter(folder / f"adapter-{seed}", seed=seed) for seed in range(1, 6)}

    def add(name: str, seed: int, **labels: Any) -> Adapter:
        place: dict[str, Any] = {"role": "spirit"} if name == "spirit" else {"role": "ingredient", "domain": name}
        return registry.adapters.add(folders[seed], base=base, labels=Labels(**labels), **place)

    registry.domains.add("beauty")
    registry.domains.add("toys")
    registry.recipes.add("house", {"coefficients": {"spirit": 1.0}})
    registry.templates.add("ours", {"name": "ours"})
    add("spirit", 1)
    spirit = add("spirit", 2)
    add("beauty", 3, metrics={"HR@1": 0.5}, tags=["nightly"])
    champion = add("beauty", 4)
    add("beauty", 5)
    add("toys", 3)
    registry.adapters.alias("beauty@v2", "champion")
    registry.adapters.archive("beauty@v1")
    inputs = {"adapters": [{"ref": a.ref, "digest": a.digest} for a in (spirit, champion)]}
    done = registry.builds.request("beauty", base.name, "done", {}, inputs, own_recipe=True).build
    registry.builds.claim("w", build_id=done.id)
    done = registry.builds.succeed(done.id, "w", base.digest, {"spirit": 0.5}, {})
    registry.publications.add(done, "acme/beauty", "c0ffee")
    registry.publications.withdraw("acme/beauty")
    registry.builds.request("beauty", base.name, "open", {}, inputs)


@pytest.fixture(scope="module")
def kept(
    dialect: str,
    open_settings: Callable[..., Any],
    create_registry: Callable[..., Registry],
    make_base: Make,
    make_adapter: Make,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Settings]:
    """One registry for all attempts that are refused, and to be copied for those that are not."""
    folder = tmp_path_factory.mktemp("rules")
    with open_settings(dialect, folder / "home") as settings:
        with create_registry(settings) as registry:
            fill(registry, folder, make_base, make_adapter)
        yield settings


@pytest.fixture
def registry(kept: Settings, dialect: str, open_settings: Callable[..., Any], tmp_path: Path) -> Iterator[Registry]:
    """A copy, which the test may change."""
    template = make_url(kept.database_url).database if dialect == "postgresql" else ""
    shutil.copytree(kept.home, tmp_path / "home")
    with open_settings(dialect, tmp_path / "home", template) as settings, Registry.open(settings) as registry:
        yield registry


@pytest.fixture
def refuses(kept: Settings, open_sql: Callable[..., Any]) -> Iterator[Callable[..., None]]:
    """(statement, statements before it): the registry for all refuses the statement, and is afterwards as it was."""
    with closing(open_sql(kept)) as sql:

        def check(statement: str, *before: str) -> None:
            for each in before:
                sql(each)
            there = everything(sql)
            with pytest.raises(sql.refusals):
                sql(statement)
            assert everything(sql) == there

        yield check


def copied(table: str, where: str = "", **changes: str) -> str:
    """SQL that inserts the newest row of the table again, with columns replaced."""
    columns = {c.name: c.name for c in Table.metadata.tables[table].columns if c.name != "id" or table == "builds"}
    columns |= changes
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) "
        f"SELECT {', '.join(columns.values())} FROM {table} {where} ORDER BY created_at DESC LIMIT 1"
    )


TOYS = "WHERE domain_id = (SELECT id FROM domains WHERE name = 'toys')"
DONE, OPEN = "WHERE key = 'done'", "WHERE key = 'open'"
NEXT = {"version": "2", "digest": "'d'", "content": "'c'"}
WITHDRAWN = "INSERT INTO withdrawals (publication_id, created_at, created_by) SELECT 1, '2026-01-01', 'eve'"

REFUSED = {
    # the current spirit
    "a second current spirit": "UPDATE adapters SET is_current = true WHERE id = 1",
    "a current ingredient": "UPDATE adapters SET is_current = true WHERE id = 4",
    # versions: numbered without gaps, and never changed
    "a version twice": copied("adapters", TOYS, version="1", digest="'d'"),
    "a gap": copied("adapters", TOYS, version="3", digest="'d'"),
    "version zero": copied("adapters", TOYS, version="0", digest="'d'"),
    "the same content twice": copied("adapters", TOYS, version="2"),
    "a spirit in a domain": copied("adapters", TOYS, **NEXT, role="'spirit'"),
    "an adapter without a base": copied("adapters", TOYS, digest="'d'", base_id="7"),
    "a version that begins archived": copied("adapters", TOYS, **NEXT, archived_at="created_at"),
    "a row of no one": copied("adapters", TOYS, **NEXT, created_by="NULL"),
    "a version's digest changed": "UPDATE adapters SET digest = 'd' WHERE id = 6",
    "a version's number changed": "UPDATE adapters SET version = 2 WHERE id = 6",
    "a version moved to another domain": "UPDATE adapters SET domain_id = 2 WHERE id = 6",
    "a version's metrics changed": """UPDATE adapters SET metrics = '{"HR@1": 0.9}' WHERE id = 6""",
    "a version's note changed": "UPDATE adapters SET note = 'x' WHERE id = 6",
    "a version's maker changed": "UPDATE adapters SET created_by = 'eve' WHERE id = 6",
    "a version removed": "DELETE FROM adapters WHERE id = 6",
    # what search looks in is what was registered
    "a tag that was not given": "INSERT INTO adapter_tags (tag, adapter_id) VALUES ('best', 3)",
    "a tag changed": "UPDATE adapter_tags SET tag = 'best'",
    "a tag removed": "DELETE FROM adapter_tags",
    "a metric that was not given": "INSERT INTO adapter_metrics (name, adapter_id, value) VALUES ('HR@3', 3, 1)",
    "a metric changed": "UPDATE adapter_metrics SET value = 1",
    "a metric removed": "DELETE FROM adapter_metrics",
    "words changed": "UPDATE adapter_words SET words = 'best'",
    "words removed": "DELETE FROM adapter_words",
    "words twice": "INSERT INTO adapter_words (adapter_id, words) VALUES (3, 'best')",
    # archiving has its event
    "archiving without an event": "UPDATE adapters SET archived_at = created_at WHERE id = 6",
    "restoring without an event": "UPDATE adapters SET archived_at = NULL WHERE id = 3",
    "another time of archiving": "UPDATE adapters SET archived_at = created_at WHERE id = 3",
    # aliases: in their domain, on an active version, where their newest event put them
    "an alias to another domain's version": "UPDATE aliases SET adapter_id = 6",
    "an alias to nothing": "UPDATE aliases SET adapter_id = 99",
    "an alias moved without an event": "UPDATE aliases SET adapter_id = 5",
    "an alias under another name": "UPDATE aliases SET name = 'candidate'",
    "an alias of another domain": "UPDATE aliases SET domain_id = 3",
    "an alias twice": copied("aliases", adapter_id="5"),
    "an alias without an event": copied("aliases", name="'candidate'"),
    "an alias removed without an event": "DELETE FROM aliases",
    # events are only appended
    "an event changed": "UPDATE events SET created_by = 'eve'",
    "an event's time changed": "UPDATE events SET created_at = created_at WHERE id = 1",
    "an event removed": "DELETE FROM events WHERE kind = 'alias.set'",
    "an event about nothing": copied("events", adapter_id="99"),
    # builds: one open build a key, lawful changes of status, each with its event
    "a second queued build of a key": copied("builds", OPEN, id="'x'"),
    "an unknown status": f"UPDATE builds SET status = 'done' {OPEN}",
    "a build that begins as succeeded": copied("builds", DONE, id="'x'", key="'y'"),
    "a build without an event": copied("builds", OPEN, id="'x'", key="'y'"),
    "a success without a result": f"UPDATE builds SET status = 'succeeded' {OPEN}",
    "a running build without a lease": f"UPDATE builds SET status = 'running' {OPEN}",
    "a status without an event": f"UPDATE builds SET status = 'cancelled' {OPEN}",
    "a success undone": f"UPDATE builds SET status = 'queued', digest = NULL {DONE}",
    "a result exchanged": f"UPDATE builds SET digest = 'd' {DONE}",
    "coefficients changed afterwards": f"UPDATE builds SET coefficients = NULL {DONE}",
    "a build's end changed afterwards": f"UPDATE builds SET finished_at = created_at {DONE}",
    "a build's worker changed afterwards": f"UPDATE builds SET worker = 'eve' {DONE}",
    "a build's key changed": f"UPDATE builds SET key = 'z' {OPEN}",
    "a build's recipe changed": f"UPDATE builds SET recipe = '{{\"a\": 1}}' {OPEN}",
    "a build that is its domain's own no more": f"UPDATE builds SET own_recipe = NULL {DONE}",
    "a build removed": f"DELETE FROM builds {OPEN}",
    # aliases of builds: on a succeeded build, where their newest event put them; pins
    "a build served that has not succeeded": f"UPDATE build_aliases SET build_id = (SELECT id FROM builds {OPEN})",
    "nothing served": "UPDATE build_aliases SET build_id = 'x'",
    "a build's alias set without an event": copied("build_aliases", name="'shadow'"),
    "a build's alias twice": copied("build_aliases"),
    "a build's alias under another name": "UPDATE build_aliases SET name = 'shadow' WHERE name = 'candidate'",
    "a build's alias in another domain": "UPDATE build_aliases SET domain_id = 3",
    "a build's alias by another event": "UPDATE build_aliases SET event_id = 1",
    "a build's alias removed without an event": "DELETE FROM build_aliases",
    "a pin without an event": f"INSERT INTO build_pins SELECT id, created_at, created_by FROM builds {DONE}",
    "a result that goes without an event": f"UPDATE builds SET collected_at = created_at {DONE}",
    "a build that begins without its result": copied("builds", OPEN, id="'x'", key="'x'", collected_at="created_at"),
    "a way to promote without an event": "INSERT INTO serving_policies VALUES (2, 'live', 'manual', '2026-01-01', 'eve')",
    "a gate without an event": "INSERT INTO gates VALUES (2, NULL, 1, 1, '2026-01-01', 'eve')",
    "an unknown way to promote": "INSERT INTO serving_policies VALUES (2, 'live', 'never', '2026-01-01', 'eve')",
    "an input of no build": "INSERT INTO build_inputs VALUES ('x', 1, '2026-01-01', '')",
    "an input exchanged": "UPDATE build_inputs SET adapter_id = 3 WHERE adapter_id = 4",
    "an input removed": "DELETE FROM build_inputs",
    # bases, domains, publications
    "a base model twice": copied("base_models", digest="'d'"),
    "a base model's digest changed": "UPDATE base_models SET digest = 'd'",
    "a base model removed": "DELETE FROM base_models",
    "a domain twice": copied("domains", title="'x'"),
    "a domain renamed": "UPDATE domains SET name = 'x' WHERE name = 'toys'",
    "a domain removed": "DELETE FROM domains WHERE name = 'toys'",
    "an unknown role": copied("domains", name="'x'", role="'other'"),
    "a second domain of spirits": copied("domains", name="'x'", role="'spirit'"),
    "a publication of no build": copied("publications", build_id="'x'"),
    "a publication changed": "UPDATE publications SET repo = 'eve/beauty'",
    "a publication removed": "DELETE FROM publications",
    "a publication of nothing": copied("publications", build_id="NULL"),
    "a publication of a build and an adapter": copied("publications", adapter_id="4"),
    "a publication of no adapter": copied("publications", build_id="NULL", adapter_id="99"),
    "a publication withdrawn twice": WITHDRAWN,
    "no publication withdrawn": WITHDRAWN.replace("SELECT 1", "SELECT 99"),
    "a withdrawal changed": "UPDATE withdrawals SET created_by = 'eve'",
    "a withdrawal removed": "DELETE FROM withdrawals",
    # recipes and templates
    "a recipe renamed": "UPDATE recipes SET name = 'x'",
    "a recipe removed": "DELETE FROM recipes",
    "a recipe twice": copied("recipes"),
    "a recipe of no kind": copied("recipes", kind="'cake'", name="'x'"),
    "a recipe's content changed": "UPDATE recipe_versions SET content = '{}'",
    "a version of a recipe removed": "DELETE FROM recipe_versions",
    "the same content as another version": copied("recipe_versions", version="2"),
    "a gap in a recipe's versions": copied("recipe_versions", version="3", digest="'d'"),
    "a version of a recipe without an event": copied("recipe_versions", version="2", digest="'d'"),
    "a domain's recipe that is a file": "UPDATE domains SET recipe = '/home/ann/house.yaml' WHERE name = 'toys'",
    "a domain's recipe that is not there": "UPDATE domains SET recipe = 'house@v2' WHERE name = 'toys'",
    "a domain's recipe that is a template": "UPDATE domains SET recipe = 'ours@v1' WHERE name = 'toys'",
    "a domain that begins with a file": copied("domains", name="'x'", role="'ingredient'", recipe="'./house.yaml'"),
}
ONLY_SQLITE = {  # INSERT OR REPLACE asks no DELETE trigger
    "a version replaced": copied("adapters", TOYS, **NEXT).replace("INSERT", "INSERT OR REPLACE").replace(
        "(base_id", "(id, base_id").replace("SELECT base_id", "SELECT 6, base_id"),
    "content replaced": copied("adapters", TOYS, version="2").replace("INSERT", "INSERT OR REPLACE"),
    "an event replaced": "INSERT OR REPLACE INTO events (id, kind, subject, detail, created_at, created_by) VALUES (1, 'x', 'x', '{}', '2026-01-01', 'eve')",
    "a base model replaced": copied("base_models", digest="'d'").replace("INSERT", "INSERT OR REPLACE"),
    "a domain replaced": copied("domains", title="'x'").replace("INSERT", "INSERT OR REPLACE"),
    "a build replaced": copied("builds", OPEN).replace("INSERT", "INSERT OR REPLACE"),
    "an input replaced": "INSERT OR REPLACE INTO build_inputs SELECT build_id, adapter_id, created_at, 'eve' FROM build_inputs",
    "an open build replaced by its key": copied("builds", OPEN, id="'x'").replace("INSERT", "INSERT OR REPLACE"),
    "words replaced": "INSERT OR REPLACE INTO adapter_words (adapter_id, words) VALUES (3, 'best')",
    "an alias's maker replaced": copied("aliases", created_by="'eve'").replace("INSERT", "INSERT OR REPLACE"),
    "a current spirit pushed out": "UPDATE OR REPLACE adapters SET is_current = true WHERE id = 1",
    "a withdrawal replaced": WITHDRAWN.replace("INSERT", "INSERT OR REPLACE"),
    "a recipe replaced": copied("recipes", created_by="'eve'").replace("INSERT", "INSERT OR REPLACE"),
    "a version of a recipe replaced": copied("recipe_versions", version="2").replace("INSERT", "INSERT OR REPLACE"),
    "a version moved by its rowid": "UPDATE adapters SET rowid = 99 WHERE id = 6",
    "an event far ahead": "INSERT INTO events (id, kind, subject, detail, created_at, created_by) VALUES (9223372036854775807, 'x', 'x', '{}', '2999-01-01', 'eve')",
    "an alias replaced": copied("aliases", adapter_id="5").replace("INSERT", "INSERT OR REPLACE"),
}  # fmt: skip
ONLY_BY_FOREIGN_KEYS = {
    "a spirit in a domain", "an adapter without a base", "an input of no build", "a publication of no build",
    "a publication of no adapter", "no publication withdrawn",
}  # fmt: skip
ONLY_POSTGRESQL = {
    f"all {table} at once": f"TRUNCATE {table} CASCADE"
    for table in (
        "adapters", "adapter_tags", "adapter_metrics", "adapter_words", "aliases", "events", "builds", "build_inputs", "build_aliases", "build_pins", "publications", "withdrawals",
        "base_models", "domains", "recipes", "recipe_versions", "evaluations", "approvals", "gates", "serving_policies", "tokens", "build_requests",
    )
}  # fmt: skip


def everything(sql: Sql) -> dict[str, list[tuple[Any, ...]]]:
    return {table: sorted(sql(f"SELECT * FROM {table}"), key=repr) for table in Table.metadata.tables}


@pytest.mark.parametrize("attempt", REFUSED.values(), ids=REFUSED.keys())
def test_the_database_itself_refuses(refuses: Callable[..., None], attempt: str) -> None:
    refuses(attempt)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("attempt", ONLY_SQLITE.values(), ids=ONLY_SQLITE.keys())
def test_sqlite_refuses_to_replace(refuses: Callable[..., None], attempt: str) -> None:
    refuses(attempt)


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
@pytest.mark.parametrize("attempt", ONLY_POSTGRESQL.values(), ids=ONLY_POSTGRESQL.keys())
def test_postgresql_refuses_to_truncate(refuses: Callable[..., None], attempt: str) -> None:
    refuses(attempt)


def event(kind: str, subject: str, adapter: str, previous: str = "NULL", alias: str = "NULL", of: int = 4) -> str:
    return (
        "INSERT INTO events (kind, subject, base_id, domain_id, adapter_id, previous_id, alias, detail, created_at,"
        f" created_by) SELECT '{kind}', '{subject}', base_id, domain_id, {adapter}, {previous}, {alias}, '{{}}',"
        f" (SELECT max(created_at) FROM events), 'ann' FROM adapters WHERE id = {of}"
    )


def build_event(kind: str, where: str, detail: str = "{}", moment: str = "max", domain: str = "domain_id") -> str:
    """Of what happened to a build's alias or pin."""
    return (
        "INSERT INTO events (kind, subject, base_id, domain_id, detail, created_at, created_by)"
        f" SELECT '{kind}', id, base_id, {domain}, '{detail}', (SELECT {moment}(created_at) FROM events), 'ann'"
        f" FROM builds {where}"
    )


POLICY = (
    "INSERT INTO events (kind, subject, domain_id, detail, created_at, created_by)"
    " SELECT 'domain.changed', 'beauty', 2, '{}', max(created_at), 'ann' FROM events"
)
SHADOW, SERVED = '{"alias": "shadow"}', '{"alias": "production"}'
MOVED = event("alias.moved", "beauty@champion", "5", "4", "'champion'")
REMOVED = event("alias.removed", "beauty@champion", "NULL", "4", "'champion'")
ARCHIVED = event("adapter.archived", "toys@v1", "6", of=6)

LAWFUL = {
    "the next version": [copied("adapters", TOYS, **NEXT)],
    "a domain's new title": ["UPDATE domains SET title = 'x' WHERE name = 'toys'"],
    "a domain's recipe": ["UPDATE domains SET recipe = 'house@v1' WHERE name = 'toys'"],
    "a version of a recipe with its event": [
        "INSERT INTO events (kind, subject, detail, created_at, created_by)"
        " SELECT 'recipe.added', 'house@v2', '{}', created_at, 'ann' FROM recipes WHERE name = 'house'",
        copied(
            "recipe_versions",
            "WHERE recipe_id = (SELECT id FROM recipes WHERE name = 'house')",
            version="2",
            digest="'d'",
        ),
    ],
    "another domain": [copied("domains", name="'x'", role="'ingredient'")],
    "an alias moved by its event": [MOVED],
    "an alias removed by its event": [REMOVED],
    "an alias set by its event": [event("alias.set", "beauty@candidate", "5", alias="'candidate'")],
    "archiving by its event": [ARCHIVED],
    "a status with its event": [
        f"INSERT INTO events (kind, subject, detail, created_at, created_by) "
        f"SELECT 'build.cancelled', id, '{{}}', created_at, 'ann' FROM builds {OPEN}",
        f"UPDATE builds SET status = 'cancelled' {OPEN}",
    ],
    "a build's alias set by its event": [build_event("build.aliased", DONE, SHADOW)],
    "a build's alias removed by its event": [build_event("build.unaliased", DONE, SERVED)],
    "a pin by its event": [build_event("build.pinned", DONE)],
    "a way to promote by its event": [
        POLICY.replace("{}", '{"served.alias": "live", "served.promote": "automatic"}'),
        "INSERT INTO serving_policies VALUES (2, 'live', 'automatic', '2026-01-01', 'ann')",
    ],
    "another publication": [copied("publications", revision="'d'")],
    "a publication of an adapter": [copied("publications", build_id="NULL", adapter_id="4")],
    "another publication withdrawn": [
        copied("publications", revision="'d'"),
        f"{WITHDRAWN.replace('SELECT 1', 'SELECT max(id)')} FROM publications",
    ],
}


@pytest.mark.parametrize("statements", LAWFUL.values(), ids=LAWFUL.keys())
def test_what_the_rules_allow_is_allowed(sql: Sql, statements: list[str]) -> None:
    """The attempts above fail for their rule, not for how they are written."""
    before = everything(sql)
    for statement in statements:
        sql(statement)
    assert everything(sql) != before


def test_an_event_moves_the_alias_and_archives_the_version_by_itself(sql: Sql) -> None:
    sql(MOVED)
    assert sql("SELECT name, adapter_id FROM aliases") == [("champion", 5)]
    sql(REMOVED.replace("4, 'champion'", "5, 'champion'"))
    assert sql("SELECT name FROM aliases") == []
    sql(ARCHIVED)
    assert sql("SELECT id FROM adapters WHERE archived_at IS NOT NULL ORDER BY id") == [(3,), (6,)]
    sql(event("adapter.restored", "toys@v1", "6", of=6))
    assert sql("SELECT id FROM adapters WHERE archived_at IS NOT NULL ORDER BY id") == [(3,)]
    sql(event("adapter.archived", "spirit@v2", "2", of=2))
    assert sql("SELECT id FROM adapters WHERE is_current") == []


def test_an_event_moves_a_builds_alias_and_pins_it_by_itself(sql: Sql) -> None:
    assert sql("SELECT name FROM build_aliases ORDER BY name") == [("candidate",), ("production",)]
    sql(build_event("build.unaliased", DONE, SERVED))
    assert sql("SELECT name FROM build_aliases ORDER BY name") == [("candidate",)]
    sql(build_event("build.aliased", DONE, SERVED))
    assert sql("SELECT name FROM build_aliases ORDER BY name") == [("candidate",), ("production",)]
    sql(build_event("build.pinned", DONE))
    assert sql("SELECT build_id FROM build_pins") == sql(f"SELECT id FROM builds {DONE}")
    sql(build_event("build.unpinned", DONE))
    assert sql("SELECT build_id FROM build_pins") == []


CANDIDATE = '{"alias": "candidate"}'


def test_a_result_goes_by_an_event_once_it_has_no_alias_and_no_pin_and_for_good(sql: Sql) -> None:
    pinned = build_event("build.pinned", DONE)
    gone = build_event("build.collected", DONE)
    sql(build_event("build.unaliased", DONE, SERVED))
    sql(build_event("build.unaliased", DONE, CANDIDATE))
    sql(pinned)
    with pytest.raises(sql.refusals):
        sql(gone)
    sql(build_event("build.unpinned", DONE))
    sql(gone)
    assert sql(f"SELECT count(*) FROM builds {DONE} AND collected_at IS NOT NULL") == [(1,)]
    for refused in (
        gone,
        pinned,
        build_event("build.aliased", DONE, SHADOW),
        f"UPDATE builds SET collected_at = NULL {DONE}",
        f"UPDATE builds SET collected_at = finished_at {DONE}",
    ):
        with pytest.raises(sql.refusals):
            sql(refused)


LYING = {
    "an alias event on an archived version": event("alias.moved", "beauty@champion", "3", "4", "'champion'"),
    "an alias event on another domain's version": event("alias.moved", "beauty@champion", "6", "4", "'champion'"),
    "an alias moved by an event of another kind": MOVED.replace("alias.moved", "nonsense"),
    "an alias event without an alias": MOVED.replace("'champion', '{}'", "NULL, '{}'"),
    "an alias event without a place": MOVED.replace("base_id, domain_id, 5", "NULL, NULL, 5"),
    "a removal that is somewhere": REMOVED.replace("domain_id, NULL, 4", "domain_id, 5, 4"),
    "an alias event of an earlier day": MOVED.replace("max(created_at)", "min(created_at)"),
    "an archiving of an earlier day": event("adapter.archived", "beauty@v2", "4").replace("max(", "min("),
    "an archiving without a place": ARCHIVED.replace("base_id, domain_id, 6", "NULL, NULL, 6"),
    "an archiving of nothing": ARCHIVED.replace("domain_id, 6", "domain_id, NULL"),
    "an archiving in another domain": event("adapter.archived", "toys@v1", "6", of=4),
    "serving a build that has not succeeded": build_event("build.aliased", OPEN, SERVED),
    "serving a build in another domain": build_event("build.aliased", DONE, SERVED, domain="3"),
    "a build's alias without a name": build_event("build.aliased", DONE),
    "a build's alias without a place": build_event("build.aliased", DONE, SHADOW, domain="NULL"),
    "a build's alias on an earlier day": build_event("build.aliased", DONE, SHADOW, moment="min"),
    "a build's alias taken away that it has not": build_event("build.unaliased", DONE, SHADOW),
    "a pin on a build that has not succeeded": build_event("build.pinned", OPEN),
    "the result of a build with an alias that goes": build_event("build.collected", DONE),
    "the result of a build that has none, which goes": build_event("build.collected", OPEN),
}


@pytest.mark.parametrize("attempt", LYING.values(), ids=LYING.keys())
def test_an_event_that_cannot_be_true_is_refused(refuses: Callable[..., None], attempt: str) -> None:
    refuses(attempt)


HELD_BY_TRIGGERS = {n: s for n, s in (REFUSED | ONLY_SQLITE | LYING).items() if n not in ONLY_BY_FOREIGN_KEYS}


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("attempt", HELD_BY_TRIGGERS.values(), ids=HELD_BY_TRIGGERS.keys())
def test_sqlite_refuses_without_foreign_keys_too(refuses: Callable[..., None], attempt: str) -> None:
    """They are off in the `sqlite3` program."""
    refuses(attempt, "PRAGMA foreign_keys = OFF")


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_what_only_foreign_keys_hold_is_as_short_as_it_says(sql: Sql) -> None:
    sql("PRAGMA foreign_keys = OFF")
    for name in ONLY_BY_FOREIGN_KEYS:
        sql("BEGIN")
        sql(REFUSED[name])
        sql("ROLLBACK")


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_a_temporary_table_does_not_stand_in_for_one_of_ours(sql: Sql) -> None:
    sql("CREATE TEMP TABLE events AS SELECT * FROM events")
    sql(
        "INSERT INTO events SELECT id + 1000, 'build.cancelled', subject FROM public.events WHERE kind = 'build.queued'"
    )
    with pytest.raises(sql.refusals, match="by an event, which comes first"):
        sql(f"UPDATE builds SET status = 'cancelled' {OPEN}")


def test_an_alias_does_not_go_back_to_an_older_event(registry: Registry, sql: Sql) -> None:
    registry.adapters.alias("beauty@v3", "champion")
    with pytest.raises(sql.refusals, match="where its newest event says"):
        sql("UPDATE aliases SET adapter_id = 4, event_id = (SELECT min(id) FROM events WHERE alias = 'champion')")


def test_the_refusal_says_which_rule(sql: Sql) -> None:
    with pytest.raises(sql.refusals, match="an adapter version never changes"):
        sql("UPDATE adapters SET digest = 'd' WHERE id = 6")


# --- gates

SECOND = "WHERE key = 'second'"
ARCHIVED_CHAMPION = event("adapter.archived", "beauty@v2", "4")


def serves(where: str, kind: str = "build.aliased", **detail: Any) -> str:
    return build_event(kind, where, json.dumps({"alias": "production", **detail}))


def moves_champion(**detail: Any) -> str:
    return MOVED.replace("'{}'", f"'{json.dumps(detail)}'")


@pytest.fixture
def gated(registry: Registry) -> dict[str, int]:
    """beauty has a gate; evaluations of beauty@v3 and of a second build, which is not served."""
    base = registry.bases.get("tiny")
    done = registry.builds.list(limit=9)[-1]
    second = registry.builds.request("beauty", "tiny", "second", {}, done.inputs).build
    registry.builds.claim("w", build_id=second.id)
    registry.builds.succeed(second.id, "w", registry.adapters.resolve("toys").digest, {}, {})
    registry.gates.set("beauty", Requirement("HR@1"), 0)
    measured = {
        "version": Weights(registry.adapters.resolve("beauty@v3").digest, base.digest),
        "build": Weights(registry.adapters.resolve("toys").digest),
    }
    return {name: record(registry, name, weights) for name, weights in measured.items()}


def record(registry: Registry, key: str, weights: Weights, split: str = "test") -> int:
    return registry.evaluations.add(
        Measurement(
            key=key, system="s", weights=weights, label=key, domain="beauty", mode="pmi", dtype="float32", task_digest="t",
            task={"split": split}, questions="q", users=9, metrics={}, detail={}, ranks="r", version="test",
        )
    ).id  # fmt: skip


def test_a_gate_holds_however_the_statement_came(registry: Registry, sql: Sql, gated: dict[str, int]) -> None:
    version, build = gated["version"], gated["build"]
    cold = record(
        registry,
        "cold",
        Weights(registry.adapters.resolve("beauty@v3").digest, registry.bases.get("tiny").digest),
        "cold",
    )
    policy = POLICY.replace("{}", '{"served.alias": "candidate"}')
    replaced = "INSERT OR REPLACE INTO gates SELECT domain_id, NULL, 1, version, created_at, created_by FROM gates"
    emptied = "TRUNCATE gates"
    attempts = [
        MOVED, REMOVED, ARCHIVED_CHAMPION, policy, policy.replace("candidate", "live"),
        moves_champion(gate=1), moves_champion(gate=1, evaluation=build), moves_champion(gate=1, evaluation=cold),
        moves_champion(evaluation=version), moves_champion(gate=2, evaluation=version), moves_champion(gate=1, override=""),
        serves(SECOND), serves(SECOND, gate=1), serves(SECOND, gate=1, evaluation=version), serves(SECOND, evaluation=build),
        serves(SECOND, gate=2, evaluation=build), serves(SECOND, rollback=True), serves(DONE, "build.unaliased"),
        serves(DONE, "build.unaliased", rollback=True), serves(DONE, "build.unaliased", gate=1, evaluation=build),
        "DELETE FROM gates", "UPDATE gates SET version = 7", "UPDATE gates SET requirement = NULL, approvals = 1",
        "UPDATE gates SET created_by = 'eve'", "UPDATE gates SET domain_id = 3",
        replaced if registry.settings.database_url.startswith("sqlite") else emptied,
    ]  # fmt: skip
    for attempt in attempts:
        there = everything(sql)
        with pytest.raises(sql.refusals):
            sql(attempt)
        assert everything(sql) == there, attempt
    lawful = [
        serves(SECOND, gate=1, evaluation=build), serves(DONE, rollback=True), serves(DONE, "build.unaliased", override="why"),
        moves_champion(gate=1, evaluation=version), REMOVED.replace("4, 'champion', '{}'", """5, 'champion', '{"override": "why"}'"""),
        event("alias.set", "beauty@champion", "4", alias="'champion'").replace("{}", '{"override": "why"}'),
        ARCHIVED_CHAMPION.replace("{}", '{"override": "why"}'), policy.replace("}", ', "override": "why"}'),
    ]  # fmt: skip
    for statement in lawful:
        sql(statement)


def test_a_gate_that_asks_for_approvals_counts_those_of_a_build(
    registry: Registry, sql: Sql, gated: dict[str, int]
) -> None:
    registry.gates.set("beauty", None, 1)
    with pytest.raises(sql.refusals):
        sql(serves(SECOND, gate=2))
    sql(
        "INSERT INTO approvals (id, build_id, created_at, created_by)"
        f" SELECT 1, id, created_at, 'someone else' FROM builds {SECOND}"
    )
    sql(serves(SECOND, gate=2))
    assert registry.serving.served("beauty")[0].build == registry.builds.list(limit=1)[0].id
