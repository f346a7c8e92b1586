"""The rules that keys and checks cannot express, as triggers: installed by migrations, and compared by `db check`.

Their text lies in `migrations/rules/REVISION.DIALECT.sql`, statements separated by empty lines. A set is whole: the
newest one at or before a revision holds, and replaces what was there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, text

from .tables import Table

FOLDER = Path(__file__).parents[2] / "migrations" / "rules"
PREFIX = "reccocktail_"  # of every function that PostgreSQL's triggers call


def install(connection: Connection, revision: str) -> None:
    """Replaces whatever rules of ours there are by those of the revision."""
    remove(connection)
    with _own_schema_only(connection):
        for statement in _statements(FOLDER / f"{revision}.{connection.dialect.name}.sql"):
            _run(connection, statement)


def remove(connection: Connection) -> None:
    """Takes all rules of ours away, for a migration that goes against them."""
    ours = {name for path in _files(connection) for name in map(_name, _statements(path))}
    for table, name in sorted(_triggers(connection)):
        if name in ours:
            _run(
                connection, f"DROP TRIGGER {name}" + (f" ON {table}" if connection.dialect.name == "postgresql" else "")
            )
    for name in sorted(_functions(connection)):
        _run(connection, f"DROP FUNCTION {name}()")


@contextmanager
def _own_schema_only(connection: Connection) -> Iterator[None]:
    """Functions made meanwhile look for tables in our schema alone: nobody's temporary table can stand in for one."""
    if connection.dialect.name != "postgresql":
        yield
        return
    before = connection.scalar(text("SHOW search_path"))
    schema = connection.scalar(text("SELECT quote_ident(current_schema())"))
    switch = text("SELECT set_config('search_path', :path, true)")
    connection.execute(switch, {"path": f"{schema}, pg_temp"})
    yield
    connection.execute(switch, {"path": before})


def drift(connection: Connection) -> list[str]:
    """What differs from the newest rules, as sentences: a rule that is missing, altered, switched off, or not ours."""
    newest = max(_files(connection))
    wanted = {_name(text): _squeezed(text) for text in _statements(newest)}
    there = {name: _squeezed(text) for (_, name), text in _triggers(connection).items()}
    there |= {name: _squeezed(text) for name, text in _functions(connection).items()}
    found = [f"the rule {name} is missing" for name in sorted(wanted.keys() - there.keys())]
    found += [f"the rule {name} is not part of the schema" for name in sorted(there.keys() - wanted.keys())]
    return found + [
        f"the rule {name} was altered" for name in sorted(wanted.keys() & there.keys()) if wanted[name] != there[name]
    ]


def _files(connection: Connection) -> list[Path]:
    return sorted(FOLDER.glob(f"*.{connection.dialect.name}.sql"))


def _statements(path: Path) -> list[str]:
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    return [block.strip() for block in blocks if not block.lstrip().startswith("--")]


def _run(connection: Connection, statement: str) -> None:
    # a % or : in the text is the text's own
    connection.execution_options(no_parameters=True).exec_driver_sql(statement)


def _name(statement: str) -> str:
    match = re.match(r"CREATE (?:TRIGGER|FUNCTION) (\w+)", statement)
    assert match, statement
    return match[1]


def _triggers(connection: Connection) -> dict[tuple[str, str], str]:
    """(table, trigger) → the statement that made it, for those on our own tables."""
    if connection.dialect.name == "sqlite":
        query = "SELECT tbl_name, name, sql FROM sqlite_master WHERE type = 'trigger'"
    else:
        query = """
            SELECT c.relname, t.tgname, CASE t.tgenabled WHEN 'O' THEN '' ELSE 'switched off ' END
                || replace(pg_get_triggerdef(t.oid), quote_ident(current_schema()) || '.', '')
            FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
            WHERE NOT t.tgisinternal AND c.relnamespace = current_schema()::regnamespace"""
    found = connection.execute(text(query))
    return {(table, name): sql for table, name, sql in found if table in Table.metadata.tables}


def _functions(connection: Connection) -> dict[str, str]:
    if connection.dialect.name == "sqlite":
        return {}
    query = """
        SELECT proname, prosrc,
            NOT prosecdef AND proconfig = ARRAY['search_path=' || quote_ident(current_schema()) || ', pg_temp']
        FROM pg_proc WHERE pronamespace = current_schema()::regnamespace AND starts_with(proname, :prefix)"""
    return {
        name: f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql "
        + ("SET search_path FROM CURRENT AS " if confined else "not confined to our schema ")
        + f"$${body}$$"
        for name, body, confined in connection.execute(text(query), {"prefix": PREFIX})
    }


def _squeezed(statement: str) -> str:
    return re.sub(r"\s+", "", statement)
