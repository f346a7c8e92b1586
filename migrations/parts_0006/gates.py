"""Gates of domains: what a version has to show before it becomes champion, and who approved it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def create() -> None:
    op.create_table(
        "gates",
        sa.Column("domain_id", ID, autoincrement=False, nullable=False),
        sa.Column("requirement", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("approvals", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.CheckConstraint("approvals >= 0", name=op.f("ck_gates_approvals")),
        sa.CheckConstraint("requirement IS NOT NULL OR approvals > 0", name=op.f("ck_gates_closed")),
        sa.ForeignKeyConstraint(["domain_id"], ["domains.id"], name=op.f("fk_gates_domain_id_domains")),
        sa.PrimaryKeyConstraint("domain_id", name=op.f("pk_gates")),
    )
    op.create_table(
        "approvals",
        sa.Column("id", ID, nullable=False),
        sa.Column("adapter_id", ID, nullable=True),
        sa.Column("build_id", sa.String(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.CheckConstraint("(adapter_id IS NULL) <> (build_id IS NULL)", name=op.f("ck_approvals_subject")),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_approvals_adapter_id_adapters")),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], name=op.f("fk_approvals_build_id_builds")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approvals")),
        sa.UniqueConstraint("adapter_id", "created_by", name=op.f("uq_approvals_adapter_id_created_by")),
        sa.UniqueConstraint("build_id", "created_by", name=op.f("uq_approvals_build_id_created_by")),
    )


def drop() -> None:
    op.drop_table("approvals")
    op.drop_table("gates")
