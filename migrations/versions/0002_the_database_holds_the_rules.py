"""Rules as triggers; events that say what they are about; aliases that stand where their newest event says; search."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op
from reccocktail.registry.database import triggers as rules

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

LOSES = None  # what events say by key, and what search looks in, can be made again from the rest

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
CHUNK = 10_000
GO_ON_NUMBERING = """
    SELECT setval(pg_get_serial_sequence('events', 'id'), coalesce(max(id), 1), max(id) IS NOT NULL) FROM events
"""


def upgrade() -> None:
    op.create_index(op.f("ix_adapters_domain_id_id"), "adapters", ["domain_id", "id"])
    op.create_index(op.f("ix_builds_domain_id_id"), "builds", ["domain_id", "id"])
    op.create_index(op.f("ix_builds_domain_id_status_finished_at"), "builds", ["domain_id", "status", "finished_at"])
    op.create_index(op.f("ix_build_inputs_adapter_id_build_id"), "build_inputs", ["adapter_id", "build_id"])
    op.create_index(op.f("ix_publications_build_id"), "publications", ["build_id"])
    _make_search()
    _rebuild_events()
    _rebuild_aliases()
    rules.install(op.get_bind(), revision)


def _make_search() -> None:
    op.create_table(
        "adapter_tags",
        sa.Column("tag", sa.String(), nullable=False),
        sa.Column("adapter_id", ID, nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_adapter_tags_adapter_id_adapters")),
        sa.PrimaryKeyConstraint("tag", "adapter_id", name=op.f("pk_adapter_tags")),
    )
    op.create_table(
        "adapter_metrics",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("adapter_id", ID, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_adapter_metrics_adapter_id_adapters")),
        sa.PrimaryKeyConstraint("name", "adapter_id", name=op.f("pk_adapter_metrics")),
    )
    op.create_table(
        "adapter_words",
        sa.Column("adapter_id", ID, autoincrement=False, nullable=False),
        sa.Column("words", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_adapter_words_adapter_id_adapters")),
        sa.PrimaryKeyConstraint("adapter_id", name=op.f("pk_adapter_words")),
    )
    op.create_index(
        op.f("ix_adapter_metrics_name_value_adapter_id"), "adapter_metrics", ["name", "value", "adapter_id"]
    )
    adapters = sa.table(
        "adapters", sa.column("id"), sa.column("domain_id"), sa.column("note"),
        sa.column("tags", sa.JSON()), sa.column("metrics", sa.JSON()),
    )  # fmt: skip
    domains = sa.table("domains", sa.column("id"), sa.column("name"))
    query = sa.select(adapters, domains.c.name.label("domain")).join(domains, domains.c.id == adapters.c.domain_id)
    for rows in _chunks(query):
        for row in rows:  # the first schema took any JSON
            row["tags"] = [tag for tag in dict.fromkeys(_list(row["tags"])) if "\0" not in tag]
            row["metrics"] = {k: float(v) for k, v in _dict(row["metrics"]).items() if _is_figure(v)}
        tags = [{"tag": tag, "adapter_id": row["id"]} for row in rows for tag in row["tags"]]
        metrics = [
            {"name": name, "adapter_id": row["id"], "value": value}
            for row in rows
            for name, value in row["metrics"].items()
        ]
        op.bulk_insert(sa.table("adapter_tags", sa.column("tag"), sa.column("adapter_id")), tags)
        op.bulk_insert(
            sa.table("adapter_metrics", sa.column("name"), sa.column("adapter_id"), sa.column("value")), metrics
        )
        words = [
            {"adapter_id": row["id"], "words": " ".join([row["domain"], row["note"] or "", *row["tags"]]).casefold()}
            for row in rows
        ]
        op.bulk_insert(sa.table("adapter_words", sa.column("adapter_id"), sa.column("words")), words)


def _rebuild_events() -> None:
    op.execute("CREATE TABLE events_before AS SELECT * FROM events")
    op.drop_table("events")
    op.create_table(
        "events",
        sa.Column("id", ID, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("base_id", ID, nullable=True),
        sa.Column("domain_id", ID, nullable=True),
        sa.Column("adapter_id", sa.BigInteger(), nullable=True),
        sa.Column("previous_id", ID, nullable=True),
        sa.Column("alias", sa.String(), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["base_models.id"], name=op.f("fk_events_base_id_base_models")),
        sa.ForeignKeyConstraint(["domain_id"], ["domains.id"], name=op.f("fk_events_domain_id_domains")),
        sa.ForeignKeyConstraint(
            ["base_id", "domain_id", "adapter_id"],
            ["adapters.base_id", "adapters.domain_id", "adapters.id"],
            name=op.f("fk_events_base_id_domain_id_adapter_id_adapters"),
        ),
        sa.CheckConstraint(
            "(alias IS NOT NULL) = (kind IN ('alias.set', 'alias.moved', 'alias.removed'))", name=op.f("ck_events_alias")
        ),
        sa.CheckConstraint(
            "alias IS NULL OR (adapter_id IS NULL) = (kind = 'alias.removed')", name=op.f("ck_events_removed")
        ),
        sa.CheckConstraint(
            "alias IS NULL OR (base_id IS NOT NULL AND domain_id IS NOT NULL)", name=op.f("ck_events_place")
        ),
        sa.CheckConstraint(
            "kind NOT IN ('adapter.added', 'adapter.archived', 'adapter.restored')"
            " OR (base_id IS NOT NULL AND domain_id IS NOT NULL AND adapter_id IS NOT NULL)",
            name=op.f("ck_events_adapter"),
        ),
        sa.ForeignKeyConstraint(["previous_id"], ["adapters.id"], name=op.f("fk_events_previous_id_adapters")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint(
            "id", "base_id", "domain_id", "alias", "adapter_id",
            name=op.f("uq_events_id_base_id_domain_id_alias_adapter_id"),
        ),
    )  # fmt: skip
    kept = {"id": ID, "kind": sa.String(), "subject": sa.String(), "detail": sa.JSON(), "created_at": TIME}
    kept |= {"created_by": sa.String()}
    added = {"base_id": ID, "domain_id": ID, "adapter_id": ID, "previous_id": ID, "alias": sa.String()}
    before = sa.table("events_before", *(sa.column(name, kind) for name, kind in kept.items()))
    after = sa.table("events", *(sa.column(name, kind) for name, kind in (kept | added).items()))
    about = _About()
    for rows in _chunks(sa.select(before)):
        op.bulk_insert(after, [row | about.keys(row["kind"], row["subject"], row["detail"]) for row in rows])
    op.drop_table("events_before")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(GO_ON_NUMBERING)
    for columns in (
        ["subject", "id"],
        ["domain_id", "id"],
        ["adapter_id", "id"],
        ["previous_id", "id"],
        ["base_id", "domain_id", "alias", "id"],
    ):
        op.create_index(op.f(f"ix_events_{'_'.join(columns)}"), "events", columns)


class _About:
    """The keys of what an event of the first schema names."""

    def __init__(self) -> None:
        run = op.get_bind().execute
        self._bases = {name: id_ for id_, name in run(sa.text("SELECT id, name FROM base_models"))}
        self._domains = {name: id_ for id_, name in run(sa.text("SELECT id, name FROM domains"))}
        builds = run(sa.text("SELECT id, base_id, domain_id FROM builds"))
        self._builds = {id_: (base, domain) for id_, base, domain in builds}
        versions = run(sa.text("SELECT id, base_id, domain_id, version FROM adapters"))
        self._versions = {(base, domain, version): id_ for id_, base, domain, version in versions}

    def keys(self, kind: str, subject: str, detail: Any) -> dict[str, Any]:
        """Written by hand, an event may say anything; what is not understood is kept, under a kind that says so."""
        found: dict[str, Any] = dict.fromkeys(("base_id", "domain_id", "adapter_id", "previous_id", "alias"))
        noun = kind.partition(".")[0]
        try:
            if noun == "base":
                found["base_id"] = self._bases[subject]
            elif noun == "domain":
                found["domain_id"] = self._domains[subject]
            elif noun == "build":
                found["base_id"], found["domain_id"] = self._builds[subject]
            elif noun == "adapter":
                found |= self._version(subject, detail["base"], "adapter_id")
            elif noun == "alias":
                before = self._version(detail["from"], detail["base"], "previous_id") if "from" in detail else {}
                after = self._version(detail["to"], detail["base"], "adapter_id") if kind != "alias.removed" else {}
                found |= before | after | {"alias": subject.split("@")[1]}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            return found | {"kind": f"{kind}.unreadable"}
        return found

    def _version(self, ref: str, base: str, key: str) -> dict[str, int]:
        name, _, version = ref.partition("@v")
        base_id, domain_id = self._bases[base], self._domains[name]
        return {"base_id": base_id, "domain_id": domain_id, key: self._versions[base_id, domain_id, int(version)]}


def _rebuild_aliases() -> None:
    op.execute("CREATE TABLE aliases_before AS SELECT * FROM aliases")
    op.drop_table("aliases")
    op.create_table(
        "aliases",
        sa.Column("base_id", sa.BigInteger(), nullable=False),
        sa.Column("domain_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("adapter_id", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["base_id", "domain_id", "adapter_id"],
            ["adapters.base_id", "adapters.domain_id", "adapters.id"],
            name=op.f("fk_aliases_base_id_domain_id_adapter_id_adapters"),
        ),
        sa.ForeignKeyConstraint(
            ["event_id", "base_id", "domain_id", "name", "adapter_id"],
            ["events.id", "events.base_id", "events.domain_id", "events.alias", "events.adapter_id"],
            name=op.f("fk_aliases_event_id_base_id_domain_id_name_adapter_id_events"),
        ),
        sa.PrimaryKeyConstraint("base_id", "domain_id", "name", name=op.f("pk_aliases")),
    )
    last = """
        (SELECT max(e.id) FROM events e
         WHERE e.base_id = a.base_id AND e.domain_id = a.domain_id AND e.alias = a.name)"""
    # an alias that was moved by hand has no event that says so; from here on it has
    unexplained = sa.text(
        f"""
        SELECT a.base_id, a.domain_id, a.adapter_id, a.name AS alias, d.name AS domain, b.name AS base, v.version
        FROM aliases_before a
        JOIN domains d ON d.id = a.domain_id JOIN base_models b ON b.id = a.base_id
        JOIN adapters v ON v.id = a.adapter_id
        WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.id = {last} AND e.adapter_id = a.adapter_id)
        """  # noqa: S608
    )
    events = sa.table(
        "events", *(sa.column(name) for name in ("kind", "subject", "base_id", "domain_id", "adapter_id", "alias")),
        sa.column("detail", sa.JSON()), sa.column("created_at", TIME), sa.column("created_by"),
    )  # fmt: skip
    found = [
        {
            "kind": "alias.moved",
            "subject": f"{row['domain']}@{row['alias']}",
            "detail": {"base": row["base"], "to": f"{row['domain']}@v{row['version']}", "found": "without an event"},
            "created_at": datetime.now(UTC),
            "created_by": "reccocktail",
        }
        | {key: row[key] for key in ("base_id", "domain_id", "adapter_id", "alias")}
        for row in op.get_bind().execute(unexplained).mappings()
    ]
    op.bulk_insert(events, found)
    op.execute(
        f"""
        INSERT INTO aliases (base_id, domain_id, name, adapter_id, event_id, created_at, created_by)
        SELECT a.base_id, a.domain_id, a.name, a.adapter_id, {last}, a.created_at, a.created_by FROM aliases_before a
        """  # noqa: S608
    )
    op.drop_table("aliases_before")
    op.create_index(op.f("ix_aliases_adapter_id"), "aliases", ["adapter_id"])


def _list(value: Any) -> list[Any]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _chunks(query: sa.Select[Any]) -> Iterator[list[dict[str, Any]]]:
    """Rows by key, a piece at a time: a registry may have millions of events."""
    key, last = query.selected_columns["id"], -(2**62)
    while rows := op.get_bind().execute(query.where(key > last).order_by(key).limit(CHUNK)).mappings().all():
        last = rows[-1]["id"]
        yield [dict(row) for row in rows]


def downgrade() -> None:
    rules.install(op.get_bind(), "0001")
    op.execute("CREATE TABLE aliases_after AS SELECT * FROM aliases")
    op.drop_table("aliases")
    op.execute("CREATE TABLE events_after AS SELECT * FROM events")
    op.drop_table("events")
    op.create_table(
        "events",
        sa.Column("id", ID, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index(op.f("ix_events_subject"), "events", ["subject"], unique=False)
    columns = "id, kind, subject, detail, created_at, created_by"
    op.execute(f"INSERT INTO events ({columns}) SELECT {columns} FROM events_after")  # noqa: S608
    op.drop_table("events_after")
    op.create_table(
        "aliases",
        sa.Column("base_id", sa.BigInteger(), nullable=False),
        sa.Column("domain_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("adapter_id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["base_id", "domain_id", "adapter_id"],
            ["adapters.base_id", "adapters.domain_id", "adapters.id"],
            name=op.f("fk_aliases_base_id_domain_id_adapter_id_adapters"),
        ),
        sa.PrimaryKeyConstraint("base_id", "domain_id", "name", name=op.f("pk_aliases")),
    )
    columns = "base_id, domain_id, name, adapter_id, created_at, created_by"
    op.execute(f"INSERT INTO aliases ({columns}) SELECT {columns} FROM aliases_after")  # noqa: S608
    op.drop_table("aliases_after")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(GO_ON_NUMBERING)
    op.drop_table("adapter_words")
    op.drop_table("adapter_metrics")
    op.drop_table("adapter_tags")
    op.drop_index(op.f("ix_publications_build_id"), "publications")
    op.drop_index(op.f("ix_build_inputs_adapter_id_build_id"), "build_inputs")
    op.drop_index(op.f("ix_builds_domain_id_status_finished_at"), "builds")
    op.drop_index(op.f("ix_builds_domain_id_id"), "builds")
    op.drop_index(op.f("ix_adapters_domain_id_id"), "adapters")
