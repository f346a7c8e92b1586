"""Gates have versions, and hold for what a domain serves too: for its builds' alias, for archiving, and for which alias is served.

The version of a gate is how often its domain has set one, which the events say; they say it of a gate from before, too.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from reccocktail.registry.database import triggers as rules

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

LOSES = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
VERSION = sa.Column("version", sa.BigInteger(), nullable=False)
EVENTS = sa.table("events", *map(sa.column, ("id", "domain_id", "kind", "created_by")), sa.column("created_at", TIME))


def upgrade() -> None:
    connection = op.get_bind()
    rules.remove(connection)
    found = [dict(row) for row in connection.execute(sa.select(_gates())).mappings()]
    for row in found:
        settings = sa.select(EVENTS.c.created_at, EVENTS.c.created_by).where(
            EVENTS.c.domain_id == row["domain_id"], EVENTS.c.kind == "domain.gated"
        )
        events = connection.execute(settings.order_by(EVENTS.c.id)).mappings().all()
        row |= {"version": len(events), **(events[-1] if events else {})}
    _recreate(found, VERSION.copy())
    rules.install(connection, revision)


def downgrade() -> None:
    connection = op.get_bind()
    rules.remove(connection)
    _recreate([dict(row) for row in connection.execute(sa.select(_gates())).mappings()])
    rules.install(connection, "0011")


def _gates(*more: str) -> sa.TableClause:
    plain = map(sa.column, ("domain_id", "approvals", "created_by", *more))
    return sa.table(
        "gates", *plain, sa.column("requirement", sa.JSON(none_as_null=True)), sa.column("created_at", TIME)
    )


def _recreate(rows: list[dict[str, Any]], *more: sa.Column[Any]) -> None:
    """SQLite adds no column without a default, and a table of this size is soon made again."""
    op.drop_table("gates")
    op.create_table(
        "gates",
        sa.Column("domain_id", ID, autoincrement=False, nullable=False),
        sa.Column("requirement", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("approvals", sa.BigInteger(), nullable=False),
        *more,
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.CheckConstraint("approvals >= 0", name=op.f("ck_gates_approvals")),
        sa.CheckConstraint("requirement IS NOT NULL OR approvals > 0", name=op.f("ck_gates_closed")),
        sa.ForeignKeyConstraint(["domain_id"], ["domains.id"], name=op.f("fk_gates_domain_id_domains")),
        sa.PrimaryKeyConstraint("domain_id", name=op.f("pk_gates")),
    )
    for row in rows:
        op.get_bind().execute(sa.insert(_gates(*(column.name for column in more))).values(row))
