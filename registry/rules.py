"""The rules that keys and checks cannot express, as triggers: installed by migrations, and compared by `db check`.

Their text lies in `migrations/rules/REVISION.DIALECT.sql`, statements separated by empty lines. A set is whole: the
newest one at or before a revision holds, and replaces what was there.
"""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import Connection, text

FOLDER = Path(__file__).parents[1] / "migrations" / "rules"
PREFIX = "reccocktail_"  # of every function that PostgreSQL's triggers call


def install(connection: Connection, revision: str) -> None:
    """Replaces whatever rules there are by those of the revision."""
    for table, name in sorted(_triggers(connection)):
        on = f" ON {table}" if connection.dialect.name == "postgresql" else ""
        _run(connection, f"DROP TRIGGER {name}{on}")
    for name in sorted(_functions(connection)):
        _run(connection, f"DROP FUNCTION {name}()")
    for statement in _statements(connection.dialect.name, revision):
        _run(connection, statement)


def drift(connection: Connection) -> list[str]:
    """What differs from the newest rules, as sentences: a rule that is missing, altered, switched off, or not ours."""
    newest = max(path.name.partition(".")[0] for path in FOLDER.glob(f"*.{connection.dialect.name}.sql"))
    wanted = {_name(text): _squeezed(text) for text in _statements(connection.dialect.name, newest)}
    there = {name: _squeezed(text) for (_, name), text in _triggers(connection).items()}
    there |= {name: _squeezed(text) for name, text in _functions(connection).items()}
    found = [f"the rule {name} is missing" for name in sorted(wanted.keys() - there.keys())]
    found += [f"the rule {name} is not one of ours" for name in sorted(there.keys() - wanted.keys())]
    return found + [
        f"the rule {name} was altered" for name in sorted(wanted.keys() & there.keys()) if wanted[name] != there[name]
    ]


def _statements(dialect: str, revision: str) -> list[str]:
    blocks = (FOLDER / f"{revision}.{dialect}.sql").read_text(encoding="utf-8").split("\n\n")
    return [block.strip() for block in blocks if not block.lstrip().startswith("--")]


def _run(connection: Connection, statement: str) -> None:
    # a % or : in the text is the text's own
    connection.execution_options(no_parameters=True).exec_driver_sql(statement)


def _name(statement: str) -> str:
    match = re.match(r"CREATE (?:TRIGGER|FUNCTION) (\w+)", statement)
    assert match, statement
    return match[1]


def _triggers(connection: Connection) -> dict[tuple[str, str], str]:
    """(table, trigger) → the statement that made it."""
    if connection.dialect.name == "sqlite":
        query = "SELECT tbl_name, name, sql FROM sqlite_master WHERE type = 'trigger'"
    else:
        query = """
            SELECT c.relname, t.tgname,
                   pg_get_triggerdef(t.oid) || CASE t.tgenabled WHEN 'O' THEN '' ELSE ' switched off' END
            FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
            WHERE NOT t.tgisinternal AND c.relnamespace = current_schema()::regnamespace"""
    return {(table, name): sql for table, name, sql in connection.execute(text(query))}


def _functions(connection: Connection) -> dict[str, str]:
    if connection.dialect.name == "sqlite":
        return {}
    query = """
        SELECT proname, prosrc FROM pg_proc
        WHERE pronamespace = current_schema()::regnamespace AND starts_with(proname, :prefix)"""
    found = connection.execute(text(query), {"prefix": PREFIX})
    return {name: f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $${body}$$" for name, body in found}


def _squeezed(statement: str) -> str:
    """The statement without what PostgreSQL writes differently when asked for it: spaces and the schema."""
    return re.sub(r"\s+|\bpublic\.", "", statement)
