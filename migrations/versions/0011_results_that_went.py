"""Results of builds that were removed from the store, because nobody needs them any more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from reccocktail.registry.database import triggers as rules

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

LOSES = "which builds' results were removed from the store: such builds count as any other, and their files are missing"


def upgrade() -> None:
    op.add_column("builds", sa.Column("collected_at", sa.DateTime(timezone=True), nullable=True))
    rules.install(op.get_bind(), revision)


def downgrade() -> None:
    # rules speak of the column, so they go first
    rules.install(op.get_bind(), "0010")
    op.drop_column("builds", "collected_at")
