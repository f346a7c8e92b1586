"""The trunk: every table, and the built-in domain under which spirits live."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

LOSES = "everything: every base model, domain, adapter, build and publication that is registered"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite numbers rows by itself only if the type is INTEGER
TIME = sa.DateTime(timezone=True)


def _made() -> tuple[sa.Column, sa.Column]:
    return sa.Column("created_at", TIME, nullable=False), sa.Column("created_by", sa.String(), nullable=False)


def upgrade() -> None:
    op.create_table(
        "base_models",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("revision", sa.String(), nullable=True),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("architecture", sa.String(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        *_made(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_base_models")),
        sa.UniqueConstraint("name", name=op.f("uq_base_models_name")),
    )
    op.create_table(
        "domains",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("data", sa.String(), nullable=True),
        sa.Column("trainer", sa.String(), nullable=True),
        sa.Column("recipe", sa.String(), nullable=True),
        *_made(),
        sa.CheckConstraint("(name = 'spirit') = (role = 'spirit')", name=op.f("ck_domains_spirit")),
        sa.CheckConstraint("role IN ('spirit', 'ingredient')", name=op.f("ck_domains_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_domains")),
        sa.UniqueConstraint("id", "role", name=op.f("uq_domains_id_role")),
        sa.UniqueConstraint("name", name=op.f("uq_domains_name")),
    )
    op.create_table(
        "events",
        sa.Column("id", ID, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        *_made(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index(op.f("ix_events_subject"), "events", ["subject"], unique=False)
    op.create_table(
        "adapters",
        sa.Column("id", ID, nullable=False),
        sa.Column("base_id", ID, nullable=False),
        sa.Column("domain_id", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("alpha", sa.Double(), nullable=False),
        sa.Column("target_modules", sa.JSON(), nullable=False),
        sa.Column("tensors", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("note", sa.String(), nullable=True),
        sa.Column("context", sa.JSON(), nullable=False),
        sa.Column("is_current", sa.Boolean(), nullable=False),
        sa.Column("archived_at", TIME, nullable=True),
        *_made(),
        sa.CheckConstraint(
            "NOT is_current OR (role = 'spirit' AND archived_at IS NULL)", name=op.f("ck_adapters_current")
        ),
        sa.CheckConstraint("version > 0", name=op.f("ck_adapters_version")),
        sa.ForeignKeyConstraint(["base_id"], ["base_models.id"], name=op.f("fk_adapters_base_id_base_models")),
        sa.ForeignKeyConstraint(
            ["domain_id", "role"], ["domains.id", "domains.role"], name=op.f("fk_adapters_domain_id_role_domains")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapters")),
        sa.UniqueConstraint("base_id", "domain_id", "digest", name=op.f("uq_adapters_base_id_domain_id_digest")),
        sa.UniqueConstraint("base_id", "domain_id", "id", name=op.f("uq_adapters_base_id_domain_id_id")),
        sa.UniqueConstraint("base_id", "domain_id", "version", name=op.f("uq_adapters_base_id_domain_id_version")),
    )
    op.create_index(
        "uq_adapters_current_spirit",
        "adapters",
        ["base_id"],
        unique=True,
        sqlite_where=sa.text("is_current"),
        postgresql_where=sa.text("is_current"),
    )
    op.create_table(
        "builds",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("base_id", ID, nullable=False),
        sa.Column("domain_id", ID, nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("recipe", sa.JSON(), nullable=False),
        sa.Column("inputs", sa.JSON(), nullable=False),
        sa.Column("digest", sa.String(), nullable=True),
        sa.Column("coefficients", sa.JSON(), nullable=True),
        sa.Column("report", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("lease_until", TIME, nullable=True),
        sa.Column("started_at", TIME, nullable=True),
        sa.Column("finished_at", TIME, nullable=True),
        *_made(),
        sa.CheckConstraint("(status = 'running') = (lease_until IS NOT NULL)", name=op.f("ck_builds_lease")),
        sa.CheckConstraint("(status = 'succeeded') = (digest IS NOT NULL)", name=op.f("ck_builds_digest")),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name=op.f("ck_builds_status")
        ),
        sa.ForeignKeyConstraint(["base_id"], ["base_models.id"], name=op.f("fk_builds_base_id_base_models")),
        sa.ForeignKeyConstraint(["domain_id"], ["domains.id"], name=op.f("fk_builds_domain_id_domains")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_builds")),
    )
    op.create_index(op.f("ix_builds_key"), "builds", ["key"], unique=False)
    op.create_index(
        "uq_builds_open_key",
        "builds",
        ["key"],
        unique=True,
        sqlite_where=sa.text("status IN ('queued', 'running')"),
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )
    op.create_table(
        "aliases",
        sa.Column("base_id", sa.BigInteger(), nullable=False),
        sa.Column("domain_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("adapter_id", sa.BigInteger(), nullable=False),
        *_made(),
        sa.ForeignKeyConstraint(
            ["base_id", "domain_id", "adapter_id"],
            ["adapters.base_id", "adapters.domain_id", "adapters.id"],
            name=op.f("fk_aliases_base_id_domain_id_adapter_id_adapters"),
        ),
        sa.PrimaryKeyConstraint("base_id", "domain_id", "name", name=op.f("pk_aliases")),
    )
    op.create_table(
        "build_inputs",
        sa.Column("build_id", sa.String(), nullable=False),
        sa.Column("adapter_id", ID, nullable=False),
        *_made(),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_build_inputs_adapter_id_adapters")),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], name=op.f("fk_build_inputs_build_id_builds")),
        sa.PrimaryKeyConstraint("build_id", "adapter_id", name=op.f("pk_build_inputs")),
    )
    op.create_table(
        "publications",
        sa.Column("id", ID, nullable=False),
        sa.Column("build_id", sa.String(), nullable=False),
        sa.Column("repo", sa.String(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("tag", sa.String(), nullable=True),
        *_made(),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], name=op.f("fk_publications_build_id_builds")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_publications")),
    )

    op.bulk_insert(
        sa.table(
            "domains", sa.column("name"), sa.column("role"), sa.column("title"),
            sa.column("created_at", TIME), sa.column("created_by"),
        ),
        [{
            "name": "spirit", "role": "spirit", "title": "Base spirit",
            "created_at": datetime.now(UTC), "created_by": "reccocktail",
        }],
    )  # fmt: skip


def downgrade() -> None:
    op.drop_table("publications")
    op.drop_table("build_inputs")
    op.drop_table("aliases")
    op.drop_table("builds")
    op.drop_table("adapters")
    op.drop_table("events")
    op.drop_table("domains")
    op.drop_table("base_models")
