"""Several machines over one registry: rows in one database, bytes in one object store, a cache on each machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from reccocktail.registry import Adapter, Registry, Settings
from reccocktail.registry.errors import StoreError
from reccocktail.registry.registry import Missing
from reccocktail.registry.store import garbage
from reccocktail.registry.store import remote as object_store

from .s3 import keys, serve

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, serve(patch) as client:
        yield client


@pytest.fixture
def shared(settings: Settings, bucket: Any, request: pytest.FixtureRequest) -> Settings:
    prefix = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return replace(settings, store_url=f"s3://shop/{prefix}")


@pytest.fixture
def here(shared: Settings) -> Iterator[Registry]:
    with Registry.create(shared, actor="ann") as registry:
        yield registry


@pytest.fixture
def there(here: Registry, shared: Settings, tmp_path: Path) -> Iterator[Registry]:
    """The same registry on another machine."""
    with Registry.open(replace(shared, home=tmp_path / "elsewhere"), actor="bob") as registry:
        yield registry


@pytest.fixture
def added(here: Registry, make_base: Make, make_adapter: Make, tmp_path: Path) -> Adapter:
    base = here.bases.add("tiny", make_base(tmp_path / "tiny"), source="org/tiny")
    here.domains.add("beauty")
    return here.adapters.add(make_adapter(tmp_path / "a"), base=base, role="ingredient", domain="beauty")


def test_what_one_machine_registers_another_uses(here: Registry, there: Registry, added: Adapter) -> None:
    found = there.adapters.resolve("beauty")
    assert (found.digest, found.created_by) == (added.digest, "ann")
    assert there.store.local(found.digest) is None
    facts, expected = there.adapters.facts(found), here.adapters.facts(added)
    assert (facts.rank, facts.tensors, facts.bytes) == (expected.rank, expected.tensors, expected.bytes)
    assert there.store.local(found.digest) is not None
    there.store.verify_tree(found.digest)
    assert there.missing() == here.missing() == []


def test_the_same_adapter_from_two_machines_is_one_version(there: Registry, added: Adapter, tmp_path: Path) -> None:
    again = there.adapters.add(tmp_path / "a", base=there.bases.get("tiny"), role="ingredient", domain="beauty")
    assert (again.ref, again.created) == (added.ref, False)


def test_what_was_lost_from_the_bucket_is_named(here: Registry, there: Registry, added: Adapter, bucket: Any) -> None:
    place = here.settings.store_url.removeprefix("s3://shop/")
    tree = f"{place}/trees/{added.digest.removeprefix('sha256:')}.json"
    assert tree in keys(bucket)
    bucket.delete_object(Bucket="shop", Key=tree)
    assert there.missing() == here.missing() == [Missing("adapter beauty@v1", added.digest)]
    with pytest.raises(StoreError, match=added.digest):
        there.adapters.folder(added)


def test_a_collection_on_one_machine_keeps_what_another_registered(
    here: Registry, there: Registry, added: Adapter, make_adapter: Make, tmp_path: Path
) -> None:
    orphan = there.store.add_folder(make_adapter(tmp_path / "orphan", seed=9))
    report = here.store.gc(here.digests(), grace=timedelta(0))
    assert report.trees == (orphan.digest,)
    assert here.store.verify() == []
    assert there.store.digests() == here.digests()


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_a_collection_waits_for_writers_on_other_machines(
    here: Registry, there: Registry, added: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = there._database.store_lock()
    assert lock is not None
    for module in (garbage, object_store):
        monkeypatch.setattr(module, "WAIT_SECONDS", 0.2, raising=False)
    # writers do not wait for each other
    with lock.shared(), lock.shared(), pytest.raises(StoreError, match="others have kept writing"):
        here.store.gc(here.digests())
    here.store.gc(here.digests())

    began, written = threading.Event(), threading.Event()

    def write() -> None:
        began.set()
        with lock.shared():
            written.set()

    with lock.exclusive(1):
        writer = threading.Thread(target=write)
        writer.start()
        assert began.wait(60)
        assert not written.wait(0.3)
    writer.join(60)
    assert written.is_set()
