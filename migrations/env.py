"""Alembic runs this file by its path; the connection, already in a transaction, comes from the caller."""

from alembic import context
from reccocktail.registry.database.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,  # SQLite alters most things only by copying the table
    transactional_ddl=True,  # true of SQLite too, since we begin the transaction ourselves
)
with context.begin_transaction():
    context.run_migrations()
