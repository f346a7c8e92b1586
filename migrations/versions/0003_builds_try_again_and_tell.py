"""Builds that are tried again after a while, the stage they are in, and what their workers said."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

LOSES = "what workers said of their builds (`build logs`), and when failed builds were to be tried again"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("builds", sa.Column("stage", sa.String(), nullable=True))
    op.add_column("builds", sa.Column("retry_at", TIME, nullable=True))
    op.create_table(
        "build_logs",
        sa.Column("id", ID, nullable=False),
        sa.Column("build_id", sa.String(), nullable=False),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], name=op.f("fk_build_logs_build_id_builds")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_build_logs")),
    )
    op.create_index(op.f("ix_build_logs_build_id_id"), "build_logs", ["build_id", "id"])


def downgrade() -> None:
    op.drop_table("build_logs")
    op.drop_column("builds", "retry_at")
    op.drop_column("builds", "stage")
