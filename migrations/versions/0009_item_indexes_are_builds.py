"""Builds have a kind: a merge is made of plain LoRAs, and an index embeds the items of a domain by one bi-tuning.

All that was built before is a merge. Going back is refused while there is a build of another kind: the older schema would take it for a
checkpoint, and builds are never removed.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from reccocktail.registry.database import triggers as rules
from reccocktail.registry.errors import UsageError

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

LOSES = None


def upgrade() -> None:
    # in one statement, since SQLite takes a check only together with its column
    op.execute(
        "ALTER TABLE builds ADD COLUMN kind VARCHAR DEFAULT 'merge' NOT NULL CONSTRAINT ck_builds_kind CHECK (kind IN ('merge', 'index'))"
    )
    rules.install(op.get_bind(), revision)


def downgrade() -> None:
    count = op.get_bind().scalar(sa.text("SELECT count(*) FROM builds WHERE kind <> 'merge'"))
    if count:
        raise UsageError(
            f"{count} build{'s are' if count > 1 else ' is'} an index of items, and an older version would take it for a checkpoint",
            hint="restore a backup from before; `reccocktail build list --kind index` shows them",
        )
    rules.install(op.get_bind(), "0008")
    op.drop_column("builds", "kind")
