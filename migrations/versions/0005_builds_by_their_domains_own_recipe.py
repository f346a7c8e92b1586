"""Which builds were asked for by their domain's own recipe: an experiment by another one never stands for the domain.

Of builds from before it is unknown (NULL): recipes may be files, and may have changed since. Such a build stands for its domain
until there is one of which it is known.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from reccocktail.registry.database import triggers as rules

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

LOSES = "which builds are experiments by another recipe than their domain's own: the newest stands for the domain again"


def upgrade() -> None:
    op.add_column("builds", sa.Column("own_recipe", sa.Boolean(), nullable=True))
    rules.install(op.get_bind(), revision)


def downgrade() -> None:
    # a rule speaks of the column, so it goes first
    rules.install(op.get_bind(), "0004")
    op.drop_column("builds", "own_recipe")
