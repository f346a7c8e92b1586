"""Metadata that people edit, beside rows that never change; domains and base models that are removed; digests of contents.

A version keeps what it was registered with. Once somebody edits it, a row of `annotations` has what holds now, and the event says who
changed what. The digest of a version's content is not known of versions from before: it is filled in when it is next needed, since the files
may lie in an object store.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
OWNERS = {"adapter_id": ("adapters", ID), "domain_id": ("domains", ID), "base_id": ("base_models", ID)}
OWNERS |= {"build_id": ("builds", sa.String())}
ONE_OWNER = " + ".join(f"(CASE WHEN {owner} IS NULL THEN 0 ELSE 1 END)" for owner in OWNERS) + " = 1"


def create() -> None:
    op.create_table(
        "annotations",
        sa.Column("id", ID, nullable=False),
        *(sa.Column(owner, type_, nullable=True) for owner, (_, type_) in OWNERS.items()),
        sa.Column("description", sa.String(), nullable=True),
        sa.Column("note", sa.String(), nullable=True),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("links", sa.JSON(), nullable=False),
        sa.Column("words", sa.String(), nullable=False),
        sa.Column("event_id", ID, nullable=False),
        *(
            sa.ForeignKeyConstraint([owner], [f"{table}.id"], name=op.f(f"fk_annotations_{owner}_{table}"))
            for owner, (table, _) in OWNERS.items()
        ),
        sa.ForeignKeyConstraint(["event_id"], ["events.id"], name=op.f("fk_annotations_event_id_events")),
        sa.CheckConstraint(ONE_OWNER, name=op.f("ck_annotations_owner")),
        *(sa.UniqueConstraint(owner, name=op.f(f"uq_annotations_{owner}")) for owner in OWNERS),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_annotations")),
    )
    op.add_column("adapters", sa.Column("content", sa.String(), nullable=True))
    op.create_index(op.f("ix_adapters_base_id_domain_id_content"), "adapters", ["base_id", "domain_id", "content"])
    op.add_column("domains", sa.Column("removed_at", TIME, nullable=True))
    op.add_column("base_models", sa.Column("removed_at", TIME, nullable=True))


def drop() -> None:
    connection = op.get_bind()
    edited = "SELECT adapter_id FROM annotations WHERE adapter_id IS NOT NULL"
    op.execute(f"DELETE FROM adapter_tags WHERE adapter_id IN ({edited})")  # noqa: S608
    op.execute(f"DELETE FROM adapter_metrics WHERE adapter_id IN ({edited})")  # noqa: S608
    for table in (_TAGS, _METRICS):
        op.execute(table[connection.dialect.name])
    _as_registered(connection)
    op.drop_table("annotations")
    op.drop_index(op.f("ix_adapters_base_id_domain_id_content"), "adapters")
    op.drop_column("adapters", "content")
    op.drop_column("domains", "removed_at")
    op.drop_column("base_models", "removed_at")


_TAGS = {
    "sqlite": """
        INSERT INTO adapter_tags (tag, adapter_id) SELECT DISTINCT given.value, adapters.id
        FROM adapters JOIN annotations ON annotations.adapter_id = adapters.id, json_each(adapters.tags) AS given
        WHERE given.type = 'text'""",
    "postgresql": """
        INSERT INTO adapter_tags (tag, adapter_id) SELECT DISTINCT given.value #>> '{}', adapters.id
        FROM adapters JOIN annotations ON annotations.adapter_id = adapters.id, json_array_elements(adapters.tags) AS given
        WHERE json_typeof(given.value) = 'string'""",
}
_METRICS = {
    "sqlite": """
        INSERT INTO adapter_metrics (name, adapter_id, value) SELECT given.key, adapters.id, given.value
        FROM adapters JOIN annotations ON annotations.adapter_id = adapters.id, json_each(adapters.metrics) AS given
        WHERE given.type IN ('integer', 'real')""",
    "postgresql": """
        INSERT INTO adapter_metrics (name, adapter_id, value) SELECT given.key, adapters.id, given.value::text::double precision
        FROM adapters JOIN annotations ON annotations.adapter_id = adapters.id, json_each(adapters.metrics) AS given
        WHERE json_typeof(given.value) = 'number'""",
}


def _as_registered(connection: sa.Connection) -> None:
    """The words that search looks in, of every version that was edited; SQL cannot fold cases as Python does."""
    adapters, domains = (
        sa.table(name, *map(sa.column, columns))
        for name, columns in (("adapters", ("id", "domain_id", "note")), ("domains", ("id", "name")))
    )
    tags = sa.column("tags", sa.JSON())
    annotations, words = sa.table("annotations", sa.column("adapter_id")), sa.table("adapter_words", sa.column("adapter_id"), sa.column("words"))  # fmt: skip
    query = (
        sa.select(adapters.c.id, domains.c.name, adapters.c.note, sa.type_coerce(sa.literal_column("adapters.tags"), tags.type))
        .join_from(adapters, domains, domains.c.id == adapters.c.domain_id)
        .join(annotations, annotations.c.adapter_id == adapters.c.id)
    )  # fmt: skip
    for id_, name, note, given in connection.execute(query).all():
        assert isinstance(given, list)
        text = " ".join([name, note or "", *(tag for tag in given if isinstance(tag, str))]).casefold()
        connection.execute(sa.update(words).where(words.c.adapter_id == id_).values(words=text))
