"""Builds that are indexes: what the database holds of them, beside the merges that a domain serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reccocktail.registry import Adapter, Base, Build, Registry
from reccocktail.registry.catalog.filters import BuildFilter
from reccocktail.registry.catalog.references import BI_TUNING, INDEX, MERGE
from reccocktail.registry.database import migrate
from reccocktail.registry.database.tables import now
from reccocktail.registry.errors import ConflictError, UsageError, WrongKindError
from reccocktail.tasks import Item


@pytest.fixture
def row(registry: Registry, base: Base, make_bi_tuning: Callable[..., Path], tmp_path: Path) -> Adapter:
    """beauty@v1, a bi-tuning."""
    registry.domains.add("beauty")
    folder = make_bi_tuning(tmp_path / "bundle", base.digest, [Item("a", "Cream"), Item("b", "Soap")])
    return registry.adapters.add(folder, base=base, role="ingredient", domain="beauty")


def request(registry: Registry, row: Adapter, key: str, kind: str = INDEX) -> Build:
    inputs: dict[str, Any] = {"adapters": [{"role": BI_TUNING, "ref": row.ref, "digest": row.digest}]}
    if kind == INDEX:
        inputs |= {"bundle": row.digest}
    return registry.builds.request("beauty", row.base, key, {}, inputs, own_recipe=False, kind=kind).build


def made(registry: Registry, asked: Build) -> Build:
    registry.builds.claim("w", build_id=asked.id)
    with registry.store.staging("result") as folder:
        (folder / "index.txt").write_text(asked.id)
        return registry.builds.succeed(asked.id, "w", registry.store.adopt(folder).digest, {}, None)


def test_an_index_is_a_build_that_no_domain_serves_and_merges_pass_by(
    registry: Registry, row: Adapter, add: Callable[..., Adapter], sql: Any
) -> None:
    first = made(registry, request(registry, row, "a"))
    assert (first.kind, first.coefficients, first.own_recipe) == (INDEX, None, False)
    assert request(registry, row, "a").id == first.id
    plain = add("beauty", 1)
    merge = made(registry, request(registry, plain, "m", MERGE))
    newest = made(registry, request(registry, row, "b"))
    assert registry.builds.newest_succeeded("beauty") == merge
    assert registry.builds.newest_succeeded_by_domain() == {"beauty": merge}
    assert [each.id for each in registry.builds.list(BuildFilter(kind=INDEX))] == [newest.id, first.id]
    assert [each.id for each in registry.builds.list(BuildFilter(adapter=row))] == [newest.id, first.id]
    assert first.stored_digest(INDEX) == first.digest
    with pytest.raises(WrongKindError):
        first.stored_digest()
    failed = request(registry, row, "c")
    registry.builds.claim("w", build_id=failed.id)
    registry.builds.fail(failed.id, "w", {"code": "x", "message": "x"})
    assert [each.id for each in registry.builds.unsettled()] == [failed.id]

    # one that another of the same bi-tuning has replaced goes, and no merge for it
    assert [each.id for each in registry.collect_builds(now())] == [first.id]
    with pytest.raises(ConflictError, match="removed") as gone:
        registry.builds.get(first.id).stored_digest(INDEX)
    assert "--adapter beauty@v1" in (gone.value.hint or "")

    # and the database holds it, however the statement came to it
    for change in (registry.serving.promote, lambda id_: registry.serving.alias(id_, "shadow")):
        with pytest.raises(Exception, match="serves"):
            change(newest.id)
    for kind, asked in ((INDEX, plain), (MERGE, row)):
        with pytest.raises(Exception, match="only a bi-tuning has an index"):
            request(registry, asked, "x", kind)
    assert registry.builds.newest_of_key("x") is None
    copied = f"INSERT INTO build_inputs SELECT '{newest.id}', id, created_at, created_by FROM adapters"
    for statement in (
        f"UPDATE builds SET kind = 'merge' WHERE id = '{newest.id}'",
        f"UPDATE builds SET kind = 'index' WHERE id = '{merge.id}'",
        f"{copied} WHERE kind = 'lora'",
    ):
        with pytest.raises(sql.refusals):
            sql(statement)


def test_an_index_is_of_one_bi_tuning(registry: Registry, row: Adapter, make_bi_tuning: Any, tmp_path: Path, sql: Any):
    folder = make_bi_tuning(tmp_path / "other", row.context["bundle"]["base"], [Item("a", "Cream")], seed=2)
    other = registry.adapters.add(folder, base=registry.bases.get(row.base), role="ingredient", domain="beauty")
    asked = request(registry, row, "a")
    with pytest.raises(sql.refusals):
        sql(
            f"INSERT INTO build_inputs SELECT '{asked.id}', id, created_at, created_by FROM adapters WHERE version = {other.version}"
        )


def test_going_back_is_refused_while_indexes_are_there(
    registry: Registry, row: Adapter, add: Callable[..., Adapter]
) -> None:
    url, plain = registry.settings.database_url, add("beauty", 1)
    merge = request(registry, plain, "m", MERGE)
    migrate.downgrade(url, "0008", allow_loss=True)
    migrate.upgrade(url)
    migrate.check(url)
    assert registry.builds.get(merge.id) == merge
    request(registry, row, "a")
    with pytest.raises(UsageError, match="an index of items"):
        migrate.downgrade(url, "0008", allow_loss=True)
    migrate.check(url)
