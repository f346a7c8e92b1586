"""Aliases that are moved only where the caller has seen what is there now."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest
from reccocktail.registry import Registry
from reccocktail.registry.catalog.expecting import Expected
from reccocktail.registry.errors import ConflictError, PreconditionError


def test_an_alias_moves_only_from_where_it_was_seen(registry: Registry, add):
    registry.domains.add("beauty")
    for seed in (1, 2, 3):
        add("beauty", seed)
    registry.adapters.alias("beauty@v1", "shadow", expected=Expected(None))
    (seen,) = registry.adapters.aliases("beauty")
    assert (seen.alias, seen.ref, seen.base) == ("shadow", "beauty@v1", "tiny")
    assert registry.adapters.aliases("beauty", base="tiny") == [seen]
    with pytest.raises(PreconditionError):
        registry.adapters.alias("beauty@v2", "shadow", expected=Expected(None))
    registry.adapters.alias("beauty@v2", "shadow", expected=Expected(seen.event))
    for refused in (
        lambda: registry.adapters.alias("beauty@v3", "shadow", expected=Expected(seen.event)),
        lambda: registry.adapters.remove_alias("beauty@shadow", expected=Expected(seen.event)),
    ):
        with pytest.raises(PreconditionError):
            refused()
    (now,) = registry.adapters.aliases("beauty")
    assert now.ref == "beauty@v2"
    registry.adapters.remove_alias("beauty@shadow", expected=Expected(now.event))
    assert registry.adapters.aliases("beauty") == []


def test_an_alias_of_builds_moves_only_from_where_it_was_seen(registry: Registry, base):
    registry.domains.add("beauty")

    def built(key: str) -> str:
        row = registry.builds.request("beauty", base.name, key, {}, {"adapters": []}).build
        registry.builds.claim("w", build_id=row.id)
        return registry.builds.succeed(row.id, "w", base.digest, None, None).id

    one, two = built("a"), built("b")
    first = registry.serving.promote(one, expected=Expected(None))
    assert first.event == registry.events.list(limit=1)[0].id
    for refused in (
        lambda: registry.serving.promote(two, expected=Expected(None)),
        lambda: registry.serving.alias(two, "production", expected=Expected(first.event - 1)),
        lambda: registry.serving.remove("beauty@production", expected=Expected(first.event - 1)),
    ):
        with pytest.raises(PreconditionError):
            refused()
    assert registry.serving.promote(two, expected=Expected(first.event)).build == two


def test_of_several_who_saw_the_same_one_moves_it(registry: Registry, add):
    registry.domains.add("beauty")
    for seed in (1, 2, 3, 4):
        add("beauty", seed)
    won: list[str] = []

    def move(ref: str) -> None:
        with suppress(ConflictError):
            won.append(registry.adapters.alias(ref, "shadow", expected=Expected(None)).ref)

    threads = [threading.Thread(target=move, args=(f"beauty@v{number}",)) for number in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [registry.adapters.resolve("beauty@shadow").ref] == won
