"""Rows of what went to the Hub, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from reccocktail.registry import Adapter, Base, Build, Registry
from reccocktail.registry.catalog.publications import Publication
from reccocktail.registry.errors import NotFoundError

REPO = "acme/beauty"
FILES = {"model.safetensors": "a" * 64}


@pytest.fixture
def parts(registry: Registry, base: Base, add: Callable[..., Adapter]) -> tuple[Build, Adapter, Adapter]:
    """A succeeded build of `beauty`, its ingredient and the spirit."""
    registry.domains.add("beauty")
    spirit, ingredient = add("spirit", 1), add("beauty", 2)
    inputs = {"adapters": [{"ref": a.ref, "digest": a.digest} for a in (spirit, ingredient)]}
    asked = registry.builds.request("beauty", base.name, "k", {}, inputs).build
    registry.builds.claim("w", build_id=asked.id)
    return registry.builds.succeed(asked.id, "w", base.digest, {"spirit": 0.5}, {}), ingredient, spirit


def test_builds_and_adapters_have_rows_that_tell_which(registry: Registry, parts: Any) -> None:
    build, ingredient, spirit = parts
    add = registry.publications.add
    rows = [
        add(build, REPO, "c1", "v1", files=FILES, options={"license": "mit"}),
        add(ingredient, "acme/lora", "c2"),
        add(spirit, "acme/spirit", "c3"),
    ]
    assert [(row.build, row.adapter, row.domain) for row in rows] == [
        (build.id, None, "beauty"), (None, "beauty@v1", "beauty"), (None, "spirit@v1", "spirit")
    ]  # fmt: skip
    assert (rows[0].files, rows[0].options) == (FILES, {"license": "mit"})
    assert [row.of(subject) for row in rows for subject in parts] == [True, *[False] * 3, True, *[False] * 3, True]
    publications = registry.publications
    assert publications.list("beauty") == [rows[1], rows[0]]
    assert publications.list("spirit") == [rows[2]]
    assert publications.list(repo=REPO) == publications.of_repo(REPO) == publications.list(build=build.id) == [rows[0]]
    assert publications.standing() == [rows[0]]
    assert publications.newest_by_adapter([ingredient.digest, spirit.digest]) == {
        ingredient.digest: rows[1], spirit.digest: rows[2]
    }  # fmt: skip
    assert registry.events.list(limit=1)[0].kind == "adapter.published"
    assert [p.repo for p in registry.adapters.reached(ingredient).publications] == ["acme/lora", REPO]


def test_the_same_again_is_the_same_row(registry: Registry, parts: Any) -> None:
    add = registry.publications.add
    first = add(parts[0], REPO, "c1", files=FILES)
    assert add(parts[0], REPO, "c1", files=FILES) == first
    tagged = add(parts[0], REPO, "c1", "v1", files=FILES)
    assert tagged.id != first.id
    assert registry.publications.get(REPO) == tagged
    assert registry.publications.get(str(first.id)) == first
    assert registry.publications.newest_revision(REPO) == "c1"


def test_what_is_withdrawn_stays_and_counts_no_more(registry: Registry, parts: Any) -> None:
    build, ingredient, _ = parts
    publications = registry.publications
    first = publications.add(build, REPO, "c1")
    second = publications.add(build, REPO, "c2")
    lora = publications.add(ingredient, "acme/lora", "c3")
    (gone,) = publications.withdraw(str(second.id))
    assert gone.withdrawn_at
    assert publications.standing() == []  # the repository's head is not the first
    assert publications.withdrawn_builds() == {(REPO, build.id)}
    elsewhere = publications.add(build, "acme/second", "c4")
    assert publications.standing() == [elsewhere]
    publications.withdraw("acme/second")
    assert [row.withdrawn_at is not None for row in publications.withdraw(REPO)] == [True, True]
    assert publications.standing() == []
    publications.withdraw("acme/lora")
    assert publications.newest_by_adapter([ingredient.digest]) == {}
    kinds = [(event.kind, event.subject) for event in registry.events.list(limit=3)]
    assert kinds == [("adapter.withdrawn", "beauty@v1"), *[("build.withdrawn", build.id)] * 2]
    assert {row.id for row in publications.list()} == {first.id, second.id, lora.id, elsewhere.id}
    again = publications.add(build, REPO, "c2")
    assert isinstance(again, Publication)
    assert again.withdrawn_at is None
    assert publications.standing() == publications.standing("beauty") == [again]
    assert publications.withdrawn_builds() == {("acme/second", build.id)}


@pytest.mark.parametrize("what", ["acme/none", "99", "9" * 30, "-1"])
def test_what_was_never_published_is_not_found(registry: Registry, what: str) -> None:
    for look in (registry.publications.get, registry.publications.withdraw):
        with pytest.raises(NotFoundError, match=what):
            look(what)
