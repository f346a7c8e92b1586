"""Publications of adapters, the files that a publication has, and publications that were withdrawn."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from reccocktail.registry.database import triggers as rules

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

LOSES = "publications of adapters, which files each publication has, and what was withdrawn"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
GO_ON_NUMBERING = """
    SELECT setval(pg_get_serial_sequence('publications', 'id'), coalesce(max(id), 1), max(id) IS NOT NULL)
    FROM publications
"""
KEPT = "id, build_id, repo, revision, tag, created_at, created_by"


def upgrade() -> None:
    _rebuild(
        sa.Column("adapter_id", ID, nullable=True),
        sa.Column("files", sa.JSON(), nullable=True),
        sa.Column("options", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_publications_adapter_id_adapters")),
        sa.CheckConstraint("(build_id IS NULL) <> (adapter_id IS NULL)", name=op.f("ck_publications_subject")),
        build_is_optional=True,
    )
    op.create_index(op.f("ix_publications_adapter_id"), "publications", ["adapter_id"])
    op.create_index(op.f("ix_publications_repo"), "publications", ["repo"])
    op.create_table(
        "withdrawals",
        sa.Column("publication_id", ID, autoincrement=False, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["publication_id"], ["publications.id"], name=op.f("fk_withdrawals_publication_id_publications")
        ),
        sa.PrimaryKeyConstraint("publication_id", name=op.f("pk_withdrawals")),
    )
    rules.install(op.get_bind(), revision)


def _rebuild(*added: sa.schema.SchemaItem, build_is_optional: bool) -> None:
    """SQLite cannot change a column, so the table is made anew, in the same way everywhere."""
    op.execute("CREATE TABLE publications_before AS SELECT * FROM publications")
    op.drop_table("publications")
    op.create_table(
        "publications",
        sa.Column("id", ID, nullable=False),
        sa.Column("build_id", sa.String(), nullable=build_is_optional),
        sa.Column("repo", sa.String(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("tag", sa.String(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        *added,
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], name=op.f("fk_publications_build_id_builds")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_publications")),
    )
    op.execute(
        f"INSERT INTO publications ({KEPT}) SELECT {KEPT} FROM publications_before WHERE build_id IS NOT NULL"  # noqa: S608
    )
    op.drop_table("publications_before")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(GO_ON_NUMBERING)
    op.create_index(op.f("ix_publications_build_id"), "publications", ["build_id"])


def downgrade() -> None:
    op.drop_table("withdrawals")
    _rebuild(build_is_optional=False)
    rules.install(op.get_bind(), "0002")
