"""Adapters of other kinds than a plain LoRA: what they are is part of the version, and none of them is ever mixed.

All that was registered before is a plain LoRA. Going back is refused while there is a version of another kind: the older schema would take
it for an ingredient.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from reccocktail.registry.database import triggers as rules
from reccocktail.registry.errors import UsageError

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

LOSES = None

KINDS = "'lora', 'personalised-lora', 'bi-tuning'"


def upgrade() -> None:
    # in one statement, since SQLite takes a check only together with its column
    op.execute(
        f"ALTER TABLE adapters ADD COLUMN kind VARCHAR DEFAULT 'lora' NOT NULL CONSTRAINT ck_adapters_kind CHECK (kind IN ({KINDS}))"
    )
    op.create_index(op.f("ix_adapters_kind_id"), "adapters", ["kind", "id"])
    rules.install(op.get_bind(), revision)


def downgrade() -> None:
    query = "SELECT count(*), min(kind) FROM adapters WHERE kind <> 'lora'"
    count, kind = op.get_bind().execute(sa.text(query)).one()
    if count:
        raise UsageError(
            f"{count} adapter version{'s are' if count > 1 else ' is'} no plain LoRA (such as {kind}), and an older version would mix them",
            hint="restore a backup from before they were registered; `reccocktail adapter list --kind` shows them",
        )
    rules.install(op.get_bind(), "0006")
    op.drop_index(op.f("ix_adapters_kind_id"), "adapters")
    op.drop_column("adapters", "kind")
