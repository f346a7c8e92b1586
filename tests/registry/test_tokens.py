"""Tokens of a server: shown once, kept as a digest, valid until they expire or are revoked; the database holds that."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from reccocktail.registry import Registry
from reccocktail.registry.catalog import tokens
from reccocktail.registry.catalog.tokens import checked_scopes, span
from reccocktail.registry.database import migrate
from reccocktail.registry.errors import ConflictError, NotFoundError, UsageError
from reccocktail.registry.redaction import redacted


def test_a_token_is_shown_once_and_known_by_its_digest(registry: Registry, sql):
    made = registry.tokens.create("ci", ["read", "build", "read"], lasts=timedelta(days=90))
    assert made.token.scopes == ("read", "build")
    assert len(made.secret) == 47
    ((kept,),) = sql("SELECT digest FROM tokens")
    assert kept == hashlib.sha256(made.secret.encode()).hexdigest()
    assert made.secret not in str(registry.events.list()) + str(registry.tokens.list())
    assert redacted(f"Bearer x, {made.secret}!").endswith("[secret]!")
    found = registry.tokens.of_secret(made.secret)
    assert found is not None
    assert (found.id, found.last_used_at) == (made.token.id, None)
    used = registry.tokens.of_id(found.id)
    assert used is not None
    assert used.last_used_at is not None
    assert registry.tokens.of_secret(made.secret + "x") is None
    assert registry.tokens.of_secret("") is None
    assert (registry.events.list(limit=1)[0].kind, registry.events.list(limit=1)[0].subject) == ("token.added", "ci")


def test_an_expired_or_revoked_token_is_none(registry: Registry, monkeypatch):
    assert not registry.tokens.is_any_valid()
    short = registry.tokens.create("short", ["read"], lasts=timedelta(hours=1))
    long = registry.tokens.create("long", ["admin"], lasts=None)
    with pytest.raises(ConflictError):
        registry.tokens.create("long", ["read"], lasts=None)
    registry.tokens.revoke("long")
    assert registry.tokens.of_secret(long.secret) is registry.tokens.of_id(long.token.id) is None
    with pytest.raises(NotFoundError):
        registry.tokens.revoke("long")
    assert registry.tokens.is_any_valid()
    again = registry.tokens.create("long", ["read"], lasts=None)
    assert registry.tokens.of_secret(again.secret) is not None
    registry.tokens.revoke("long")
    later = tokens.now() + timedelta(hours=2)
    monkeypatch.setattr(tokens, "now", lambda: later)
    assert registry.tokens.of_secret(short.secret) is None
    assert not registry.tokens.is_any_valid()
    assert [(each.name, each.is_valid(later)) for each in registry.tokens.list()] == [("long", False)] * 2 + [
        ("short", False)
    ]


def test_what_is_no_scope_or_span_is_refused(registry: Registry):
    assert checked_scopes(["promote:*", "promote:beauty"]) == ("promote:*", "promote:beauty")
    for wrong in (["write"], ["promote"], ["promote:DOMAIN"], ["read "], []):
        with pytest.raises(UsageError):
            checked_scopes(wrong)
    assert (span("90d"), span("12h"), span("never")) == (timedelta(days=90), timedelta(hours=12), None)
    for text in ("90", "0d", "d", "-1d", "forever"):
        with pytest.raises(UsageError):
            span(text)
    with pytest.raises(NotFoundError):
        registry.tokens.create("ci", ["promote:nowhere"], lasts=None)
    with pytest.raises(UsageError):
        registry.tokens.create("two words", ["read"], lasts=None)


def test_the_database_keeps_tokens_as_they_were_made(registry: Registry, sql):
    registry.tokens.create("ci", ["read"], lasts=timedelta(days=1))
    registry.tokens.create("old", ["read"], lasts=None)
    registry.tokens.revoke("old")
    new = "INSERT INTO tokens (name, digest, scopes, event_id, created_at, created_by) SELECT '{}', '{}', scopes, event_id + 9, created_at, 'eve' FROM tokens LIMIT 1"
    attempts = [
        "UPDATE tokens SET scopes = '[\"admin\"]'",
        "UPDATE tokens SET expires_at = NULL",
        f"UPDATE tokens SET digest = '{'0' * 64}' WHERE name = 'ci'",
        "UPDATE tokens SET revoked_at = NULL WHERE name = 'old'",
        "UPDATE tokens SET revoked_at = created_at WHERE name = 'ci'",  # without its event
        new.format("eve", "0" * 64).replace("event_id + 9", "event_id"),  # with the event of another
        "DELETE FROM tokens",
        new.format("eve", "0" * 64),  # without its event
        new.format("ci", "0" * 64),
        new.format("eve", "0"),
    ]
    if registry.settings.database_url.startswith("sqlite"):
        attempts.append(new.format("ci", "0" * 64).replace("INSERT", "INSERT OR REPLACE"))
    else:
        attempts.append("TRUNCATE tokens")
    before = sql("SELECT * FROM tokens ORDER BY id")
    for attempt in attempts:
        with pytest.raises(sql.refusals):
            sql(attempt)
        assert sql("SELECT * FROM tokens ORDER BY id") == before, attempt
    sql("UPDATE tokens SET last_used_at = created_at")


def test_a_schema_without_tokens_keeps_the_rest(registry: Registry):
    registry.domains.add("beauty")
    registry.tokens.create("ci", ["read"], lasts=None)
    url = registry.settings.database_url
    with pytest.raises(UsageError):
        migrate.downgrade(url, "0007")
    migrate.downgrade(url, "0007", allow_loss=True)
    migrate.upgrade(url)
    assert migrate.check(url) == max(migrate._revisions())
    assert registry.domains.get("beauty")
    assert registry.tokens.list() == []
    assert registry.tokens.create("ci", ["read"], lasts=None).token.name == "ci"
