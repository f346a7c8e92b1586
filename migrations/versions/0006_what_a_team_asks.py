"""What a team asks of a registry: evaluations, versioned recipes, metadata that people edit, builds that are served, and gates.

Each part is a module of `parts_0006`. The database's rules speak of all their tables, and so are replaced as one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from reccocktail.migrations.parts_0006 import evaluations, gates, metadata, recipes, serving
from reccocktail.registry.database import triggers as rules

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

LOSES = (
    "what was measured of adapters, builds and other systems (their ranks stay in the store until it is collected), recipes and templates in"
    " the registry (a domain that has one keeps its name, and cannot be built), what people edited of tags, notes, descriptions, links and"
    " metrics (versions have what they were registered with again, and removed domains and base models are listed again, under a name that"
    " says so), which builds are served, aliases of builds, pins, how domains promote, the gates of domains, who approved what, and which"
    " builds' results were removed from the store"
)


def upgrade() -> None:
    for part in (evaluations, recipes, metadata, serving, gates):
        part.create()
    op.add_column("builds", sa.Column("collected_at", sa.DateTime(timezone=True), nullable=True))
    rules.install(op.get_bind(), revision)
    serving.serve_what_was_served()  # by events, which the rules carry out


def downgrade() -> None:
    rules.remove(op.get_bind())
    op.drop_column("builds", "collected_at")
    for part in (gates, serving, metadata, recipes, evaluations):
        part.drop()
    rules.install(op.get_bind(), "0005")
