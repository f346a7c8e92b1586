"""What the command says and where: data to stdout, progress to stderr, tables for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

NAMES = frozenset(
    {
        "ref",
        "id",
        "name",
        "domain",
        "spirit",
        "ingredient",
        "build",
        "status",
        "state",
        "check",
        "created",
        "when (UTC)",
    }
)
"""Columns that are typed again in the next command, and times: they are never broken over two lines."""


def printable(text: str) -> str:
    """A name that was typed or read may hold what moves a terminal's cursor or changes its colours."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def say(line: str) -> None:
    """A line about what happens, to stderr."""
    click.echo(printable(line), err=True)


def answer(as_json: bool, document: Any, show: Callable[[], None]) -> None:
    """The command's answer: the document as JSON when asked for, else whatever `show` prints."""
    if as_json:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        show()


def page(after: Sequence[object], limit: int) -> None:
    """Tell a person that a page was full, and how to go on; `after` has each entry's key."""
    if len(after) == limit:
        say(f"({limit} shown; go on with --after {after[-1]})")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str, right: Sequence[str] = ()) -> None:
    """A table that fits the terminal; `empty` is said instead when there are no rows."""
    if not rows:
        say(empty)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        grid.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=name in NAMES)
    for row in rows:
        grid.add_row(*(Text(_cell(value)) for value in row))
    width = None if sys.stdout.isatty() else 160  # a pipe has no width of its own
    Console(width=width, highlight=False).print(grid)


def details(record: Mapping[str, Any]) -> None:
    """One record, a field a line."""
    width = max(map(len, record), default=0)
    for name, value in record.items():
        if value not in (None, "", [], {}, ()):
            click.echo(f"{name.replace('_', ' '):<{width}}  {_cell(value)}")


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return ", ".join(map(_cell, value))
        case Mapping():
            return ", ".join(f"{k}={_cell(v)}" for k, v in value.items())
        case _:
            return printable(str(value))


def size(count: int) -> str:
    """Bytes as people say them."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def short(digest: str | None) -> str:
    """The start of a digest, enough to tell it apart."""
    return (digest or "-").removeprefix("sha256:")[:12]


@contextmanager
def progress(title: str, *, unit: str = "") -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr for `update(done, total, note)`; on no terminal a line every tenth of the way instead."""
    if not sys.stderr.isatty():
        yield _milestones(title, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)


def _milestones(title: str, unit: str) -> Callable[[int, int, str], None]:
    reached = 0

    def update(done: int, total: int, note: str = "") -> None:
        nonlocal reached
        tenth = 10 * done // max(total, 1)
        if tenth > reached:
            reached = tenth
            counts = f"{size(done)} of {size(total)}" if unit == "bytes" else f"{done} of {total} {unit}".rstrip()
            say(f"{title}: {counts} {note}".rstrip())

    return update
