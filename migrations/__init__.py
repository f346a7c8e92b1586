"""Alembic's environment and the versions of the tables; driven by `reccocktail.registry.database.connection`."""
