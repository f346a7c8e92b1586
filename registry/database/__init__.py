"""The database of a registry: connection, tables, triggers, migrations."""
