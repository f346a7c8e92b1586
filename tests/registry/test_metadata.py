"""Metadata that people edit, renaming and removing, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from reccocktail.registry import Adapter, Base, Registry
from reccocktail.registry.catalog.adapters import AdapterFilter
from reccocktail.registry.catalog.annotations import Edit
from reccocktail.registry.catalog.filters import MetricBound
from reccocktail.registry.catalog.registration import Checks
from reccocktail.registry.database import migrate
from reccocktail.registry.database.tables import Table
from reccocktail.registry.errors import ConflictError, NotFoundError, UsageError

Add = Callable[..., Adapter]
Sql = Any
EDIT = Edit(note="Grüße", tags=["prod"], metrics={"HR@1": 0.5}, links={"run": "https://mlflow.example/runs/7"})


def found(registry: Registry, **wanted: Any) -> list[str]:
    return [adapter.ref for adapter in registry.adapters.list(AdapterFilter(**wanted))]


def test_an_edit_changes_what_is_shown_and_what_search_finds(registry: Registry, add: Add, sql: Sql) -> None:
    registry.domains.add("beauty")
    add("beauty", 1, tags=["nightly"], metrics={"HR@1": 0.25, "HR@3": 0.5}, note="Old")
    before = sql("SELECT tags, metrics, note FROM adapters")
    edited = registry.edits.adapter("beauty@v1", Edit(**vars(EDIT) | {"untag": ["nightly"], "unmetric": ["HR@3"]}))
    assert edited == registry.adapters.resolve("beauty")
    assert (edited.tags, edited.note, edited.metrics) == (("prod",), "Grüße", {"HR@1": 0.5})
    assert edited.links == {"run": "https://mlflow.example/runs/7"}
    assert sql("SELECT tags, metrics, note FROM adapters") == before
    assert found(registry, tags=["prod"]) == found(registry, text="GRÜSSE") == ["beauty@v1"]
    assert found(registry, tags=["nightly"]) == found(registry, text="old") == []
    assert found(registry, metrics=[MetricBound.parse("HR@1>=0.5")]) == ["beauty@v1"]
    assert found(registry, metrics=[MetricBound.parse("HR@3>=0")]) == []
    registry.edits.adapter("beauty", Edit(tags=["later"], untag=["prod"], note="", metrics={"HR@1": 0.75}))
    assert found(registry, tags=["later"]) == found(registry, metrics=[MetricBound.parse("HR@1>0.7")]) == ["beauty@v1"]
    assert found(registry, tags=["prod"]) == found(registry, text="grüsse") == []
    assert registry.adapters.resolve("beauty").note is None


def test_what_a_version_was_said_to_be_at_a_moment_is_known(registry: Registry, add: Add) -> None:
    registry.domains.add("beauty")
    known = [add("beauty", 1, tags=["nightly"], metrics={"HR@1": 0.25}, note="Old")]
    moments = [datetime.now(UTC)]
    for change in (
        Edit(note="", tags=["prod"], untag=["nightly"], links={"run": "https://mlflow.example/runs/7"}),
        Edit(description="For the shop", metrics={"HR@3": 0.5}, unlink=["run"]),
        Edit(note="New", unmetric=["HR@1"]),
    ):
        known.append(registry.edits.adapter("beauty@v1", change))
        moments.append(datetime.now(UTC))
    fields = ("note", "description", "tags", "metrics", "links")
    for then, at in zip(known, moments, strict=True):
        found = registry.adapters.resolve("beauty", at=at)
        assert [getattr(found, name) for name in fields] == [getattr(then, name) for name in fields]
    assert len({str([getattr(then, name) for name in fields]) for then in known}) == 4


def test_every_edit_is_an_event_and_one_that_changes_nothing_is_none(registry: Registry, add: Add) -> None:
    registry.domains.add("beauty")
    add("beauty", 1)
    for _ in range(2):
        registry.edits.adapter("beauty", EDIT)
        registry.edits.domain("beauty", EDIT)
        registry.edits.base("tiny", EDIT)
    edits = {e.kind: e for e in registry.events.list() if e.kind.endswith(".edited")}
    assert len([e for e in registry.events.list() if e.kind.endswith(".edited")]) == 3
    assert edits["adapter.edited"].subject == "beauty@v1"
    assert edits["domain.edited"].detail["changed"]["tags"] == {"from": [], "to": ["prod"]}
    assert edits["base.edited"].detail["changed"]["note"] == {"from": None, "to": "Grüße"}
    assert [e.kind for e in registry.adapters.log("beauty@v1")] == ["adapter.edited", "adapter.added"]
    assert registry.domains.get("beauty").tags == registry.bases.get("tiny").tags == ("prod",)
    assert registry.domains.list()[0].links == registry.bases.list()[0].links == EDIT.links


def test_a_build_is_edited_too(registry: Registry, base: Base) -> None:
    registry.domains.add("beauty")
    build = registry.builds.request("beauty", base.name, "key", {}, {}).build
    assert registry.edits.of_build(build.id).tags == ()
    assert registry.edits.build(build.id[:-1], EDIT).tags == ("prod",)
    assert registry.edits.of_build(build.id).note == "Grüße"
    assert registry.events.list(limit=1)[0].kind == "build.edited"
    assert registry.builds.cancel(build.id).status == "cancelled"


@pytest.mark.parametrize(
    "wrong",
    [
        Edit(untag=["x"]),
        Edit(unlink=["x"]),
        Edit(unmetric=["x"]),
        Edit(metrics={"x": float("nan")}),
        Edit(links={"x": "no address"}),
        Edit(links={"x": "https://ann:geheim99@example.org/x"}),
        Edit(links={"x": "https://example.org/x?token=geheim99"}),
        Edit(tags=["\n"]),
    ],
)
def test_an_edit_that_cannot_be_is_refused(registry: Registry, add: Add, wrong: Edit) -> None:
    registry.domains.add("beauty")
    add("beauty", 1)
    with pytest.raises(UsageError) as caught:
        registry.edits.adapter("beauty", wrong)
    assert "geheim99" not in str(caught.value)
    assert registry.adapters.log("beauty")[0].kind == "adapter.added"


def test_a_secret_in_a_note_is_taken_out(registry: Registry, add: Add, sql: Sql) -> None:
    registry.domains.add("beauty")
    add("beauty", 1)
    edited = registry.edits.adapter("beauty", Edit(note="use hf_" + "a1B2" * 9))
    assert edited.notes
    for table in ("annotations", "events"):
        assert "a1B2a1B2" not in str(sql(f"SELECT * FROM {table}"))


def test_a_renamed_domain_keeps_all_it_has(registry: Registry, add: Add) -> None:
    registry.domains.add("beauty", title="Beauty")
    add("beauty", 1, note="Old")
    registry.adapters.alias("beauty@v1", "champion")
    registry.edits.adapter("beauty", Edit(tags=["prod"]))
    assert registry.domains.rename("beauty", "cosmetics").name == "cosmetics"
    assert registry.adapters.resolve("cosmetics@champion").ref == "cosmetics@v1"
    assert found(registry, text="cosmetics old prod") == ["cosmetics@v1"]
    assert found(registry, text="beauty") == []
    assert len(registry.events.list(domain="cosmetics")) == 5
    with pytest.raises(NotFoundError):
        registry.domains.get("beauty")
    registry.domains.add("beauty")
    with pytest.raises(ConflictError):
        registry.domains.rename("beauty", "cosmetics")
    with pytest.raises(NotFoundError):
        registry.domains.rename("spirit", "ghost")
    assert registry.edits.adapter("cosmetics", Edit(untag=["prod"])).tags == ()
    assert found(registry, text="cosmetics old") == ["cosmetics@v1"]


def test_a_domain_that_builds_refer_to_is_not_renamed(registry: Registry, add: Add, sql: Sql) -> None:
    for name in ("beauty", "toys"):
        registry.domains.add(name)
    pinned = add("toys", 1)
    build = registry.builds.request(
        "beauty", "tiny", "key", {}, {"adapters": [{"ref": pinned.ref, "digest": pinned.digest}]}
    ).build
    for name in ("beauty", "toys"):
        with pytest.raises(ConflictError, match=build.id):
            registry.domains.rename(name, "cosmetics")
        sql(
            "INSERT INTO events (kind, subject, domain_id, detail, created_at, created_by) SELECT 'domain.renamed', 'x', id,"
            f" '{{\"to\": \"cosmetics\"}}', created_at, 'eve' FROM domains WHERE name = '{name}'"
        )
        with pytest.raises(sql.refusals, match="only where nothing refers"):
            sql(f"UPDATE domains SET name = 'cosmetics' WHERE name = '{name}'")


def test_what_nothing_refers_to_is_removed_and_its_name_is_free(registry: Registry, base: Base) -> None:
    registry.domains.add("beauty")
    registry.edits.domain("beauty", EDIT)
    registry.domains.remove("beauty")
    assert registry.domains.list() == []
    with pytest.raises(NotFoundError):
        registry.domains.get("beauty")
    assert registry.domains.add("beauty").tags == ()
    registry.bases.remove("tiny")
    assert registry.bases.list() == []
    assert base.digest not in registry.digests()
    assert [e.kind for e in registry.events.list(limit=1)] == ["base.removed"]


def test_what_something_refers_to_is_not_removed(registry: Registry, add: Add, sql: Sql) -> None:
    registry.domains.add("beauty")
    registry.domains.add("toys")
    add("beauty", 1)
    registry.adapters.archive("beauty@v1")
    registry.builds.request("toys", "tiny", "key", {}, {})
    for remove, name, word in (
        (registry.domains.remove, "beauty", "beauty@v1"),
        (registry.domains.remove, "toys", "1 build"),
        (registry.bases.remove, "tiny", "beauty@v1"),
    ):
        with pytest.raises(ConflictError, match=word):
            remove(name)
    insert = "INSERT INTO events (kind, subject, {0}, detail, created_at, created_by) SELECT '{1}', 'x', id, '{{}}', created_at, 'eve' FROM {2} WHERE name = '{3}'"
    for column, kind, table, name in (
        ("domain_id", "domain.removed", "domains", "beauty"),
        ("base_id", "base.removed", "base_models", "tiny"),
    ):
        sql(insert.format(column, kind, table, name))
        with pytest.raises(sql.refusals):
            sql(
                f"UPDATE {table} SET name = name || ' (removed ' || id || ')', removed_at = created_at WHERE name = '{name}'"
            )


def test_a_removed_domain_takes_nothing_new(registry: Registry, add: Add, sql: Sql) -> None:
    registry.domains.add("beauty")
    registry.domains.add("toys")
    add("beauty", 1)
    registry.domains.remove("toys")
    (gone,) = sql("SELECT id FROM domains WHERE removed_at IS NOT NULL")[0]
    columns = "base_id, role, digest, rank, alpha, target_modules, tensors, bytes, metrics, tags, context, is_current, created_at, created_by"
    with pytest.raises(sql.refusals, match="takes nothing new"):
        sql(f"INSERT INTO adapters (domain_id, version, {columns}) SELECT {gone}, 1, {columns} FROM adapters")


@pytest.fixture
def shuffled(tmp_path: Path, make_adapter: Callable[..., Path], lora_tensors: Callable[..., Any]) -> Path:
    """The adapter of seed 1, with tensors, keys and `target_modules` in another order, and 4 written as 4.0."""
    tensors = dict(reversed(lora_tensors(seed=1).items()))
    config = {"target_modules": ["v_proj", "q_proj"], "lora_alpha": 4.0}
    return make_adapter(tmp_path / "shuffled", tensors=tensors, config=config)


def test_content_in_another_order_is_the_same_version(
    registry: Registry, base: Base, make_adapter: Callable[..., Path], shuffled: Path, tmp_path: Path
) -> None:
    registry.domains.add("beauty")
    place: dict[str, Any] = {"base": base, "role": "ingredient", "domain": "beauty"}
    config = {"target_modules": ["q_proj", "v_proj"]}
    first = registry.adapters.add(make_adapter(tmp_path / "one", seed=1, config=config), **place)
    again = registry.adapters.add(shuffled, **place)
    assert (again.ref, again.created, again.digest) == (first.ref, False, first.digest)
    with pytest.raises(ConflictError):
        registry.adapters.add(shuffled, **place, checks=Checks(reuse=False))
    other = make_adapter(tmp_path / "other", seed=1, config=config | {"lora_alpha": 8})
    assert registry.adapters.add(other, **place).ref == "beauty@v2"


def test_versions_from_before_are_compared_when_they_may_be_equal(
    registry: Registry, base: Base, make_adapter: Callable[..., Path], shuffled: Path, tmp_path: Path, sql: Sql
) -> None:
    registry.domains.add("beauty")
    place: dict[str, Any] = {"base": base, "role": "ingredient", "domain": "beauty"}
    registry.adapters.add(
        make_adapter(tmp_path / "one", seed=1, config={"target_modules": ["q_proj", "v_proj"]}), **place
    )
    columns = ", ".join(
        c.name for c in Table.metadata.tables["adapters"].columns if c.name not in ("id", "content", "version")
    )
    values = columns.replace("digest", f"'{registry.store.add_folder(shuffled).digest}'")
    sql(f"INSERT INTO adapters (version, {columns}) SELECT 2, {values} FROM adapters")
    third = make_adapter(
        tmp_path / "third",
        seed=1,
        config={"target_modules": ["v_proj", "q_proj"], "lora_alpha": 4.0, "inference_mode": None},
    )
    assert registry.adapters.add(third, **place).ref == "beauty@v1"
    assert len({content for (content,) in sql("SELECT content FROM adapters")}) == 1


def test_metadata_changes_by_an_event_alone_whoever_asks_the_database(registry: Registry, add: Add, sql: Sql) -> None:
    registry.domains.add("beauty")
    add("beauty", 1)
    add("beauty", 2)
    registry.edits.adapter("beauty@v1", EDIT)
    columns = "adapter_id, note, tags, metrics, links, words, event_id"
    before = sql(f"SELECT {columns} FROM annotations")
    attacks = (
        "UPDATE annotations SET note = 'better'",
        "UPDATE annotations SET tags = '[\"champion\"]'",
        "UPDATE annotations SET metrics = '{\"HR@1\": 1.0}'",
        "UPDATE annotations SET adapter_id = 2",
        "UPDATE annotations SET event_id = 1",
        "DELETE FROM annotations",
        f"INSERT INTO annotations ({columns}) SELECT 2, note, tags, metrics, links, words, event_id FROM annotations",
        f"INSERT INTO annotations ({columns}) SELECT {columns} FROM annotations",
        "INSERT INTO adapter_tags VALUES ('champion', 2)",
    )
    for attack in attacks:
        with pytest.raises(sql.refusals):
            sql(attack)
        assert sql(f"SELECT {columns} FROM annotations") == before, attack
    assert found(registry, tags=["champion"]) == []


def test_going_back_to_a_schema_without_edits_searches_what_was_registered(
    registry: Registry, add: Add, sql: Sql
) -> None:
    registry.domains.add("beauty")
    add("beauty", 1, tags=["nightly"], metrics={"HR@1": 0.25}, note="Old")
    registry.edits.adapter("beauty", Edit(tags=["prod"], untag=["nightly"], note="New", metrics={"HR@1": 0.75}))
    url, settings = registry.settings.database_url, registry.settings
    registry.close()
    migrate.downgrade(url, "0005", allow_loss=True)
    migrate.upgrade(url)
    assert migrate.check(url)
    with Registry.open(settings) as again:
        assert (again.adapters.resolve("beauty").tags, again.adapters.resolve("beauty").note) == (("nightly",), "Old")
        assert found(again, tags=["nightly"]) == found(again, text="old") == ["beauty@v1"]
        assert found(again, metrics=[MetricBound.parse("HR@1<0.5")]) == ["beauty@v1"]
        assert found(again, tags=["prod"]) == found(again, text="new") == []
