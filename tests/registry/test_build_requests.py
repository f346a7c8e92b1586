"""Requests for builds that name themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reccocktail.registry import Registry
from reccocktail.registry.catalog.build_requests import Once
from reccocktail.registry.errors import ConflictError, UsageError


def test_a_request_that_is_sent_again_has_the_same_answer(registry: Registry, base, sql):
    registry.domains.add("beauty")
    once = Once("ci", "nightly-1", "sha256:asked")

    def ask(once: Once, key: str = "k"):
        return registry.acting_as("ci", once=once).builds.request(
            "beauty", base.name, key, {}, {"adapters": []}, force=True
        )

    assert registry.acting_as("ci", once=once).builds.answered() is None
    first = ask(once)
    registry.builds.cancel(first.build.id)
    again = ask(once)
    assert (first.created, again.created, again.build.id) == (True, False, first.build.id)
    found = registry.acting_as("ci", once=once).builds.answered()
    assert found is not None
    assert found.id == first.build.id
    assert ask(replace(once, actor="other")).created
    assert ask(replace(once, key="nightly-2"), "l").created
    with pytest.raises(ConflictError):
        ask(replace(once, digest="sha256:else"))
    for key in ("", " ", "x" * 201, "a\nb"):
        with pytest.raises(UsageError):
            replace(once, key=key).checked()
    before = sql("SELECT * FROM build_requests ORDER BY key, actor")
    assert len(before) == 3
    attempts = ["UPDATE build_requests SET digest = 'x'", "DELETE FROM build_requests"]
    if registry.settings.database_url.startswith("sqlite"):
        attempts.append(
            "INSERT OR REPLACE INTO build_requests SELECT actor, key, 'x', build_id, created_at, created_by FROM build_requests"
        )
    for attempt in attempts:
        with pytest.raises(sql.refusals):
            sql(attempt)
    assert sql("SELECT * FROM build_requests ORDER BY key, actor") == before
