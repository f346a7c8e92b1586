"""What differs between a database and the tables of this version: what Alembic compares, and what it does not.

Alembic knows tables, columns and the names of indexes. Constraints, conditions of partial indexes, defaults, rewriting
rules and switched-off triggers are compared here, and the rules of `rules.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from . import triggers as rules
from .tables import Table

TABLES = Table.metadata.tables


def found(connection: Connection, reference: Callable[[], dict[str, str]]) -> list[str]:
    """Sentences, none where all is as it should be. `reference` gives `statements` of a SQLite database just made."""
    differences = [str(each) for each in compare_metadata(MigrationContext.configure(connection), Table.metadata)]
    if connection.dialect.name == "sqlite":
        differences += _compared(reference(), statements(connection))
    else:
        differences += _compared(
            _wanted_constraints() | _wanted_indexes(), _constraints(connection) | _indexes(connection)
        )
        differences += _additions(connection)
    return differences + rules.drift(connection)


def statements(connection: Connection) -> dict[str, str]:
    """The statements that made a SQLite database's tables and indexes, without their spaces and the order of lines."""
    query = text("SELECT name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL AND type IN ('table', 'index')")
    return {
        name: "\n".join(sorted(re.sub(r"[\s,]+", " ", line).strip() for line in sql.splitlines()))
        for name, table, sql in connection.execute(query)
        if table in TABLES
    }


def _compared(wanted: dict[str, str], there: dict[str, str]) -> list[str]:
    found = [f"{name} is missing" for name in sorted(wanted.keys() - there.keys())]
    found += [f"{name} is not part of the schema" for name in sorted(there.keys() - wanted.keys())]
    return found + [
        f"{name} was altered" for name in sorted(wanted.keys() & there.keys()) if wanted[name] != there[name]
    ]


# --- PostgreSQL


def _words(condition: str) -> str:
    """What a condition speaks of: PostgreSQL writes brackets, casts and lists of its own when it is asked for one."""
    plain = re.sub(r"::[a-z ]+(?:\[\])?", "", condition)
    words = set(re.findall(r"'[^']*'|\w+", plain.lower())) - {"check", "in", "any", "all", "array"}
    return " ".join(sorted(words))


def _wanted_constraints() -> dict[str, str]:
    kinds = {"PRIMARY KEY": "p", "UNIQUE": "u", "FOREIGN KEY": "f", "CHECK": "c"}
    found = {}
    for table in TABLES.values():
        made = str(CreateTable(table).compile(dialect=postgresql.dialect()))
        for name, kind, rest in re.findall(
            r"CONSTRAINT (\w+) (PRIMARY KEY|UNIQUE|FOREIGN KEY|CHECK) ?(.*?),? ?\n", made
        ):
            found[name] = f"{kinds[kind]} {_words(rest)}" if kind == "CHECK" else kinds[kind]
    return found


def _constraints(connection: Connection) -> dict[str, str]:
    query = """
        SELECT c.conname, c.contype::text, t.relname, pg_get_constraintdef(c.oid), c.convalidated
        FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
        WHERE t.relnamespace = current_schema()::regnamespace AND c.contype IN ('p', 'u', 'f', 'c')"""
    return {
        name: (f"c {_words(text)}" if kind == "c" else kind) + ("" if validated else " not validated")
        for name, kind, table, text, validated in connection.execute(text(query))
        if table in TABLES
    }


def _wanted_indexes() -> dict[str, str]:
    found = {}
    for index in (index for table in TABLES.values() for index in table.indexes):
        where = index.dialect_options["postgresql"]["where"]
        found[str(index.name)] = f"{index.unique} {_words(str(where)) if where is not None else ''}"
    return found


def _indexes(connection: Connection) -> dict[str, str]:
    query = """
        SELECT c.relname, t.relname, i.indisunique, i.indisvalid, coalesce(pg_get_expr(i.indpred, i.indrelid), '')
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
        WHERE t.relnamespace = current_schema()::regnamespace
            AND NOT EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u'))"""
    return {
        name: f"{unique} {_words(where)}" + ("" if valid else " not valid")
        for name, table, unique, valid, where in connection.execute(text(query))
        if table in TABLES
    }


def _additions(connection: Connection) -> list[str]:
    """What rewrites statements, fills columns, or keeps foreign keys from being checked."""
    rewriting = "SELECT tablename, rulename FROM pg_rules WHERE schemaname = current_schema()"
    unchecked = """
        SELECT c.relname, t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
        WHERE t.tgisinternal AND t.tgenabled <> 'O' AND c.relnamespace = current_schema()::regnamespace"""
    filling = """
        SELECT table_name, column_name FROM information_schema.columns
        WHERE table_schema = current_schema() AND column_default IS NOT NULL AND column_default NOT LIKE 'nextval(%'
            AND (table_name, column_name, column_default) NOT IN (
                ('adapters', 'kind', $$'lora'::character varying$$), ('builds', 'kind', $$'merge'::character varying$$)
            )"""
    return [
        f"{table}: {text} {name}"
        for query, text in (
            (rewriting, "statements are rewritten by"),
            (unchecked, "switched off is"),
            (filling, "a default was given to"),
        )
        for table, name in connection.execution_options(no_parameters=True).exec_driver_sql(query)
        if table in TABLES
    ]
