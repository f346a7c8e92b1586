"""Requests for builds that name themselves, so that sending one again makes no second build."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from reccocktail.registry.database import triggers as rules

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

LOSES = "the names of requests: one that is sent again is a new one"


def upgrade() -> None:
    op.create_table(
        "build_requests",
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("build_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], name=op.f("fk_build_requests_build_id_builds")),
        sa.PrimaryKeyConstraint("actor", "key", name=op.f("pk_build_requests")),
    )
    rules.install(op.get_bind(), revision)


def downgrade() -> None:
    rules.remove(op.get_bind())
    op.drop_table("build_requests")
    rules.install(op.get_bind(), "0009")
