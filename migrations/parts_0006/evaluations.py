"""Evaluations: what was measured of which system, with the digest of the ranks in the store."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def create() -> None:
    op.create_table(
        "evaluations",
        sa.Column("id", ID, nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("system", sa.String(), nullable=False),
        sa.Column("weights", sa.String(), nullable=False),
        sa.Column("on_base", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("domain_id", ID, nullable=False),
        sa.Column("split", sa.String(), nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("task_digest", sa.String(), nullable=False),
        sa.Column("task", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("questions", sa.String(), nullable=False),
        sa.Column("users", sa.BigInteger(), nullable=False),
        sa.Column("metrics", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("detail", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("ranks", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.CheckConstraint("users > 0", name=op.f("ck_evaluations_users")),
        sa.ForeignKeyConstraint(["domain_id"], ["domains.id"], name=op.f("fk_evaluations_domain_id_domains")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
        sa.UniqueConstraint("key", name=op.f("uq_evaluations_key")),
    )
    op.create_index(op.f("ix_evaluations_domain_id_id"), "evaluations", ["domain_id", "id"])
    op.create_index(
        op.f("ix_evaluations_weights_on_base_split_domain_id_id"),
        "evaluations",
        ["weights", "on_base", "split", "domain_id", "id"],
    )
    op.create_table(
        "evaluation_metrics",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("evaluation_id", ID, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["evaluations.id"], name=op.f("fk_evaluation_metrics_evaluation_id_evaluations")
        ),
        sa.PrimaryKeyConstraint("name", "evaluation_id", name=op.f("pk_evaluation_metrics")),
    )
    op.create_index(
        op.f("ix_evaluation_metrics_name_value_evaluation_id"), "evaluation_metrics", ["name", "value", "evaluation_id"]
    )


def drop() -> None:
    op.drop_table("evaluation_metrics")
    op.drop_table("evaluations")
