"""Results of builds that nobody needs: which go, what stays, and what then is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from reccocktail.registry import Base, Build, Registry
from reccocktail.registry.catalog.filters import BuildFilter
from reccocktail.registry.database import migrate
from reccocktail.registry.database.tables import now
from reccocktail.registry.errors import ConflictError

Make = Callable[..., Build]
AT_ONCE = timedelta(0)


@pytest.fixture
def make(registry: Registry, base: Base) -> Make:
    """(key, own_recipe): a succeeded build of beauty with a stored result of its own."""
    registry.domains.add("beauty")

    def made(key: str, *, own_recipe: bool = False) -> Build:
        about = {"adapters": [], "recipe": {"ref": "average", "digest": "d"}}
        asked = registry.builds.request("beauty", base.name, key, {}, about, own_recipe=own_recipe).build
        registry.builds.claim("w", build_id=asked.id)
        with registry.store.staging("result") as folder:
            (folder / "model.txt").write_text(asked.id)
            digest = registry.store.adopt(folder).digest
        return registry.builds.succeed(asked.id, "w", digest, None, None)

    return made


def stored(registry: Registry, build: Build) -> bool:
    return registry.store.has(build.digest or "")


def test_only_results_that_nobody_needs_go(registry: Registry, make: Make) -> None:
    served, pinned, published, before, withdrawn = (make(key, own_recipe=key == "a") for key in "abcde")
    moment = now()
    newest = make("f")
    registry.serving.pin(pinned.id)
    registry.publications.add(before, "org/beauty", "c0")
    registry.publications.add(published, "org/beauty", "c1")
    registry.publications.add(withdrawn, "org/other", "c2")
    registry.publications.withdraw("org/other")
    assert registry.collect_builds(before.finished_at or moment) == []
    unneeded = [before.id, withdrawn.id]
    assert [row.id for row in registry.collect_builds(now(), dry_run=True)] == unneeded
    planned = registry.collect(dry_run=True, grace=AT_ONCE, without=unneeded)
    assert set(planned.trees) == {before.digest, withdrawn.digest}
    assert registry.collect(grace=AT_ONCE).trees == (), "a dry run gives nothing up"

    gone = registry.collect_builds(moment)
    assert [row.id for row in gone] == unneeded
    assert all(row.collected_at and row.path is None and row.status == "succeeded" for row in gone)
    assert registry.collect(grace=AT_ONCE).trees == planned.trees
    assert [stored(registry, row) for row in (before, withdrawn)] == [False, False]
    assert all(stored(registry, row) for row in (served, pinned, published, newest))
    assert registry.missing() == []
    assert registry.collect_builds(moment) == []
    assert [event.subject for event in registry.events.list(kind="build.collected")] == unneeded[::-1]
    registry.serving.pin(pinned.id, undo=True)
    assert [row.id for row in registry.collect_builds(now())] == [pinned.id]


def test_a_build_whose_result_is_gone_is_refused_and_made_anew(registry: Registry, make: Make) -> None:
    old = make("a")
    make("b")
    (gone,) = registry.collect_builds(now())
    assert gone.id == old.id
    for change in (
        registry.serving.pin,
        registry.serving.promote,
        lambda id_: registry.serving.alias(id_, "shadow"),
        lambda id_: registry.builds.get(id_).stored_digest(),
    ):
        with pytest.raises(ConflictError) as error:
            change(old.id)
        assert "build request beauty --recipe average" in str(error.value.hint)
    # its files are still there, and do not answer for it
    assert registry.builds.newest_succeeded("beauty", key="a") is None
    assert registry.builds.succeeded_with_keys(["a"]) == {}
    assert not registry.builds.has_reusable_build("a")
    again = make("a")
    assert again.id != old.id
    assert len(registry.builds.list(BuildFilter(status="succeeded"))) == 3


def test_a_pin_that_comes_first_keeps_the_result(
    registry: Registry, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make("a")
    make("b")
    database: Any = registry._database
    writing, pins = database.writing, [old.id]

    @contextlib.contextmanager
    def later() -> Iterator[Any]:
        if pins:
            registry.serving.pin(pins.pop())
        with writing() as session:
            yield session

    monkeypatch.setattr(database, "writing", later)
    assert registry.collect_builds(now()) == []
    assert registry.builds.get(old.id).collected_at is None


def test_what_is_gone_stays_gone_through_a_downgrade_and_is_told(registry: Registry, make: Make) -> None:
    old = make("a")
    make("b")
    registry.collect_builds(now())
    registry.collect(grace=AT_ONCE)
    url, settings = registry.settings.database_url, registry.settings
    registry.close()
    migrate.downgrade(url, "0005", allow_loss=True)
    migrate.upgrade(url)
    migrate.check(url)
    with Registry.open(settings) as again:
        assert again.builds.get(old.id).collected_at is None
        assert [each.digest for each in again.missing()] == [old.digest]
        assert not again.builds.has_reusable_build("a")
