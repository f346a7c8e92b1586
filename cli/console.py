"""What the command says and where: data to stdout, progress to stderr, tables for people, one JSON document for programs."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from ..registry.sizes import size as size
from . import display
from .bars import Bar, Stages

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
        "size",
        "when (UTC)",
    }
)
"""Columns that are typed again in the next command, times and sizes: they are broken over lines only where all else fails."""

LONG_WORD = 24
"""Cells up to which a word in another column is not broken either."""

NO_MORE = "there are no more entries"
_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{64}")
"""Of a page after the last one."""

LEAST_CUT = 16
"""The width that is left of a column whose cells may be cut."""

PIPE = 160
"""Columns of what is no terminal; more where names need them."""


_SUSPECT = re.compile(r"[^ -~\n]")
"""Characters that are looked at one by one; JSON's own line breaks and ASCII are none."""


def printable(text: str, *, indent: str | None = None) -> str:
    """The text without what moves a terminal's cursor, changes its colours or looks like another line of ours.

    Line breaks are written out too, unless `indent` says what stands before every line but the first.
    """
    if indent is not None:
        return f"\n{indent}".join(printable(line) for line in text.split("\n"))
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


_PIECE = re.compile(r"(\s*)([^\s`]*`[^`\n]+`[^\s`]*|\S+)")
"""A word, or a command in backticks, and the space before it."""


def prose(text: str, *, stream: Any, lead: str = "", indent: str = "  ") -> str:
    """The printable text after its lead; on a terminal long lines are broken between words, and commands in backticks stay whole if they fit.

    `indent` stands before every line but the first.
    """
    lines = (lead + printable(text, indent=indent)).split("\n")
    room = display.room(stream)
    return "\n".join(lines if room is None else [_broken(line, indent, room) for line in lines])


def typed(command: str) -> str:
    """A command to copy, set in; on a terminal, long ones end their lines in a backslash, as a shell takes them."""
    room = display.room(sys.stdout)
    line = f"  {printable(command)}"
    return line if room is None else _broken(line, "  ", room - 2, end=" \\") if len(line) > room else line


def _broken(line: str, indent: str, room: int, *, end: str = "") -> str:
    """The line as several of so many columns, all but the last with this end."""
    from rich.cells import cell_len

    if cell_len(line) <= room:
        return line
    hanging = line[: len(line) - len(line.lstrip())] + indent
    text, column = "", 0
    for space, piece in _pieces(line, room - len(hanging)):
        width = cell_len(piece)
        if column and column + len(space) + width > room:
            lead = hanging[: max(0, room - width)]  # a digest is set in less, so that it is not broken
            text, column = f"{text.rstrip()}{end}\n{lead}{piece}", len(lead) + width
        else:
            text, column = f"{text}{space}{piece}", column + len(space) + width
    return text


def _pieces(line: str, room: int) -> Iterator[tuple[str, str]]:
    """What stays whole, each with the space before it: a command that is longer than a line does not."""
    for space, piece in _PIECE.findall(line):
        words = [piece] if len(piece) <= room else piece.split(" ")
        yield space, words[0]
        yield from ((" ", word) for word in words[1:])


def json_text(document: Any, *, indent: int | None = 2) -> str:
    """The document as JSON that may go to a terminal: what is not printable is escaped, everything else stays readable."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    return _SUSPECT.sub(lambda found: found[0] if found[0].isprintable() else json_escape(found[0]), text)


def json_escape(character: str) -> str:
    """As `\\uXXXX`, twice for what lies beyond U+FFFF."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))


def say(line: str) -> None:
    """A remark about what happens, to stderr; not printed with --quiet. Raises nothing where stderr cannot be written."""
    if not display.manner.quiet:
        warn(line)


def warn(line: str) -> None:
    """As `say`, but printed with --quiet too: warnings, and what went wrong."""
    if display.manner.json_lines:
        display.write(display.json_line(what="says", detail=line))
    else:
        display.write(prose(line, stream=sys.stderr) + "\n")


def alarm(line: str) -> None:
    """A line about what will be lost, to stderr, in red on a terminal that has colours."""
    text = prose(line, stream=sys.stderr)
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not display.is_terminal(sys.stderr)
    display.write((text if plain else click.style(text, fg="red")) + "\n")


def answer(as_json: bool, document: Any, show: Callable[[], None]) -> None:
    """The command's answer: the document as JSON when asked for, else whatever `show` prints."""
    if as_json:
        click.echo(json_text(document))
    else:
        show()


def tell(line: str) -> None:
    """A line of the answer in words, to stdout."""
    click.echo(prose(line, stream=sys.stdout))


def page(keys: Sequence[object], limit: int) -> None:
    """Report how to get the next page, if there is one: `keys` are of one entry more than the `limit` that is shown."""
    if len(keys) > limit:
        say(f"({limit} shown; next page: --after {keys[limit - 1]})")


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    empty: str,
    right: Sequence[str] = (),
    spare: Sequence[str] = (),
    cut: Sequence[str] = (),
) -> None:
    """A table that fits the terminal, if need be without the `spare` columns, the first of them first.

    Cells of the `cut` columns keep to one line and end in … where they are too long. `empty` is printed instead when there are no rows.
    """
    if not rows:
        if empty:
            say(empty)
        return
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = [printable(name) for name in columns]
    cells = {name: [_cell(row[index]) for row in rows] for index, name in enumerate(columns)}
    natural = {name: max(map(cell_len, [name, *column])) for name, column in cells.items()}
    least = {name: natural[name] if name in NAMES else _least(name, cells[name]) for name in columns}
    least |= {name: min(natural[name], max(cell_len(name), LEAST_CUT)) for name in cut}
    room = Console().width if sys.stdout.isatty() else display.columns() or max(PIPE, _spread(least))
    left_out = _left_out(least, spare, room)
    shown = [name for name in columns if name not in left_out]
    widths = _widths({name: natural[name] for name in shown}, least, room)
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in shown:
        grid.add_column(
            Text(name),
            justify="right" if name in right else "left",
            overflow="ellipsis" if name in cut else "fold",
            no_wrap=name in cut,
            width=widths[name],
        )
    for row in zip(*(cells[name] for name in shown), strict=True):
        grid.add_row(*map(Text, row))
    Console(width=room, highlight=False).print(grid)
    if left_out:
        say(f"(left out, for lack of room: {', '.join(left_out)}; --json has all)")


def _least(name: str, column: Sequence[str]) -> int:
    """The width in which no header is broken, and no word but a long one."""
    from rich.cells import cell_len

    words = max((cell_len(word) for text in column for word in text.split()), default=0)
    return max(cell_len(name), min(words, LONG_WORD))


def _left_out(least: Mapping[str, int], spare: Sequence[str], room: int) -> list[str]:
    """As few of the spare columns as possible, so that the others fit; what was left out in vain comes back."""
    out = list(spare)
    for name in reversed(spare):  # the most important first
        kept = {each: width for each, width in least.items() if each == name or each not in out}
        if name not in least or _spread(kept) <= room:
            out.remove(name)
    return out


def _spread(widths: Mapping[str, int]) -> int:
    """The width of a table: an edge on either side, and two columns of space between its own."""
    return sum(widths.values()) + 2 * len(widths)


def _widths(natural: Mapping[str, int], least: Mapping[str, int], room: int) -> dict[str, int]:
    """Widths that fill the room: the narrowest that wants more grows first; without room the widest shrinks, names last."""
    widths = {name: least[name] for name in natural}
    free = room - _spread(widths)
    for _ in range(-free):
        able = [name for name, width in widths.items() if name not in NAMES and width > len(name)]
        widest = max(able or widths, key=widths.__getitem__)
        widths[widest] = max(1, widths[widest] - 1)
    for _ in range(free):
        wanting = [name for name, width in widths.items() if width < natural[name]]
        if not wanting:
            break
        widths[min(wanting, key=widths.__getitem__)] += 1
    return widths


def details(record: Mapping[str, Any]) -> None:
    """One record, a field a line; the further lines of a text stand below its first. A digest too long for the terminal is shortened."""
    width = max(map(len, record), default=0)
    for name, value in record.items():
        if value not in (None, "", [], {}, ()):
            lead = f"{printable(name).replace('_', ' '):<{width}}  "
            text = value if isinstance(value, str) else _cell(value)
            room = display.room(sys.stdout)
            if room is not None and len(lead) + len(text) > room and _DIGEST.fullmatch(text):
                text = short(text)  # whole with --json
            click.echo(prose(text, stream=sys.stdout, lead=lead, indent=" " * len(lead)))


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return ", ".join(map(_cell, value))
        case Mapping():
            return ", ".join(f"{printable(str(k))}={_cell(v)}" for k, v in value.items())
        case _:
            return printable(str(value))


def counted(number: int, what: str) -> str:
    """As `1 user` or `2,000 users`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def short(digest: str | None) -> str:
    """The start of a digest, enough to identify it."""
    return (digest or "-").removeprefix("sha256:")[:12]


@contextmanager
def progress(title: str, *, unit: str = "") -> Iterator[Bar]:
    """Shows the bar that it gives, on stderr; on no terminal a line every tenth of the way, or every few seconds of unknown ways."""
    bar = Bar(printable(title), unit)
    with display.working() as shown:
        shown.show(bar)
        try:
            yield bar
        finally:
            shown.drop(bar)


@contextmanager
def stages(title: str, units: Mapping[str, str]) -> Iterator[Stages]:
    """As `progress`, for work that goes through several stages, each with its own unit."""
    with display.working() as shown:

        def begin(name: str, stage: str) -> Bar:
            bar = Bar(printable(f"{name}: {stage}"), units.get(stage, ""))
            shown.show(bar)
            return bar

        bars = Stages(title, begin, shown.drop)
        try:
            yield bars
        finally:
            bars.close()
