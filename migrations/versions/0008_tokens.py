"""Tokens: who may ask a server, and for what."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from reccocktail.registry.database import triggers as rules

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

LOSES = "the tokens of servers: nobody can ask them any more, and new ones have to be made"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.Column("event_id", ID, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.CheckConstraint("length(digest) = 64", name=op.f("ck_tokens_digest")),
        sa.ForeignKeyConstraint(["event_id"], ["events.id"], name=op.f("fk_tokens_event_id_events")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("digest", name=op.f("uq_tokens_digest")),
        sa.UniqueConstraint("event_id", name=op.f("uq_tokens_event_id")),
    )
    standing = sa.text("revoked_at IS NULL")
    op.create_index(
        "uq_tokens_standing_name", "tokens", ["name"], unique=True, sqlite_where=standing, postgresql_where=standing
    )
    rules.install(op.get_bind(), revision)


def downgrade() -> None:
    rules.remove(op.get_bind())
    op.drop_table("tokens")
    rules.install(op.get_bind(), "0007")
