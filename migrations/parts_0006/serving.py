"""Aliases of builds, of which one is what a domain serves; pins; and how each domain promotes.

Until now a domain meant its build of the current inputs, else the newest by its own recipe. `production` is put there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BIG = sa.BigInteger()
TIME = sa.DateTime(timezone=True)
SERVED = "production"
WHO = (sa.Column("created_at", TIME, nullable=False), sa.Column("created_by", sa.String(), nullable=False))


def create() -> None:
    op.create_index("uq_builds_base_id_domain_id_id", "builds", ["base_id", "domain_id", "id"], unique=True)
    op.create_table(
        "build_aliases",
        sa.Column("base_id", BIG, nullable=False),
        sa.Column("domain_id", BIG, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("build_id", sa.String(), nullable=False),
        sa.Column("event_id", ID, autoincrement=False, nullable=False),
        *_who(),
        sa.ForeignKeyConstraint(
            ["base_id", "domain_id", "build_id"],
            ["builds.base_id", "builds.domain_id", "builds.id"],
            name=op.f("fk_build_aliases_base_id_domain_id_build_id_builds"),
        ),
        sa.ForeignKeyConstraint(["event_id"], ["events.id"], name=op.f("fk_build_aliases_event_id_events")),
        sa.PrimaryKeyConstraint("base_id", "domain_id", "name", name=op.f("pk_build_aliases")),
    )
    op.create_index(op.f("ix_build_aliases_build_id"), "build_aliases", ["build_id"])
    op.create_table(
        "build_pins",
        sa.Column("build_id", sa.String(), nullable=False),
        *_who(),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], name=op.f("fk_build_pins_build_id_builds")),
        sa.PrimaryKeyConstraint("build_id", name=op.f("pk_build_pins")),
    )
    op.create_table(
        "serving_policies",
        sa.Column("domain_id", ID, autoincrement=False, nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("promote", sa.String(), nullable=False),
        *_who(),
        sa.CheckConstraint("promote IN ('manual', 'automatic')", name=op.f("ck_serving_policies_promote")),
        sa.ForeignKeyConstraint(["domain_id"], ["domains.id"], name=op.f("fk_serving_policies_domain_id_domains")),
        sa.PrimaryKeyConstraint("domain_id", name=op.f("pk_serving_policies")),
    )


def _who() -> tuple[sa.Column[Any], ...]:
    return tuple(column.copy() for column in WHO)


def serve_what_was_served() -> None:
    """Puts `production` on the build that stood for its domain, by writing the event that moves it there."""
    current = _current_adapters()
    builds: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for row in op.get_bind().execute(sa.text(SUCCEEDED).columns(inputs=sa.JSON(), recipe=sa.JSON())).mappings():
        builds.setdefault((row["base_id"], row["domain_id"]), []).append({**row})
    moment = datetime.now(UTC)
    events = [
        {
            "kind": "build.aliased",
            "subject": build["id"],
            "base_id": build["base_id"],
            "domain_id": build["domain_id"],
            "detail": {"domain": build["domain"], "base": build["base"], "alias": SERVED, "found": True},
            "created_at": moment,
            "created_by": "db upgrade",
        }
        for build in (_standing(each, current) for each in builds.values())
        if build is not None
    ]
    columns = ("kind", "subject", "base_id", "domain_id", "created_by")
    table = sa.table("events", *map(sa.column, columns), sa.column("detail", sa.JSON()), sa.column("created_at", TIME))
    for event in events:
        op.get_bind().execute(sa.insert(table).values(event))


SUCCEEDED = """
    SELECT builds.id, base_id, domain_id, own_recipe, inputs, builds.recipe, domains.name AS domain, base_models.name AS base
    FROM builds JOIN domains ON domains.id = domain_id JOIN base_models ON base_models.id = base_id
    WHERE status = 'succeeded' ORDER BY finished_at DESC, builds.id DESC
"""  # the newest first
CURRENT = """
    SELECT adapters.base_id, domains.name AS domain, adapters.digest FROM adapters
    JOIN domains ON domains.id = adapters.domain_id
    LEFT JOIN aliases ON aliases.adapter_id = adapters.id AND aliases.name = 'champion'
    WHERE archived_at IS NULL
    ORDER BY adapters.base_id, adapters.domain_id, aliases.name IS NULL, version DESC
"""  # the version that a bare name means first


def _current_adapters() -> dict[tuple[int, str], str]:
    found: dict[tuple[int, str], str] = {}
    for base_id, domain, digest in op.get_bind().execute(sa.text(CURRENT)):
        found.setdefault((base_id, domain), digest)
    return found


def _standing(builds: list[Mapping[str, Any]], current: Mapping[tuple[int, str], str]) -> Mapping[str, Any] | None:
    """Of a domain's builds, newest first: the newest by its own recipe, or an earlier such one whose adapters are current again."""
    own = [row for row in builds if row["own_recipe"]] or [row for row in builds if row["own_recipe"] is None]
    if not own:
        return None
    alike = (row for row in own if row["recipe"] == own[0]["recipe"] and _is_current(row, current))
    return next(alike, own[0])


def _is_current(build: Mapping[str, Any], current: Mapping[tuple[int, str], str]) -> bool:
    adapters: Iterable[Any] = build["inputs"].get("adapters", ()) if isinstance(build["inputs"], dict) else ()
    names = [(build["base_id"], str(each["ref"]).partition("@")[0], each["digest"]) for each in adapters]
    return bool(names) and all(current.get((base_id, name)) == digest for base_id, name, digest in names)


def drop() -> None:
    op.drop_table("serving_policies")
    op.drop_table("build_pins")
    op.drop_table("build_aliases")
    op.drop_index("uq_builds_base_id_domain_id_id", "builds")
