"""CSV and TSV: quotes as in Excel, or escaped with a backslash as Spark writes them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..errors import DataError
from .dataset import FILE, Dataset
from .lines import LONGEST_BYTES, holds, misread, short, text_lines
from .long_values import LONGEST_VALUE, MAX_FIELD, SeparatedLine

INSIDE = re.compile(r'(?:[^"]++|"")*+')  # of a field in quotes
BEFORE_A_QUOTE = re.compile(r'(\\+)"')

# Fields are bounded by `MAX_FIELD` where they are read; those that are not read may be as long as a line.
csv.field_size_limit(max(csv.field_size_limit(), LONGEST_BYTES))


def csv_rows(path: Path, dataset: Dataset) -> Iterator[tuple[int, list[Any]]]:
    """Rows that are not blank, with the number of their last line. A semicolon separates if the header has more of them.

    Fields that are too long to be read are replaced by `TooLong`.
    """
    return _rows(path, dataset.encoding, quotes(path, dataset) == "escaped")


def quotes(path: Path, dataset: Dataset) -> str:
    """How quotes inside of quoted fields are written. Raises DataError if the file can be read in both ways, differently."""
    if dataset.quotes is not None:
        return dataset.quotes
    seen = path.stat()
    return _quotes(path, dataset.encoding, seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=64)
def _quotes(path: Path, encoding: str | None, size: int, changed: int) -> str:
    if not holds(path, b'\\"', encoding):
        return "doubled"
    doubled, escaped = (_is_whole(path, encoding, way) for way in (False, True))
    if doubled and escaped:
        ways = zip_longest(_rows(path, encoding, False), _rows(path, encoding, True))
        for one, other in ways:
            if one != other:
                raise DataError(
                    f"{path}, line {max(n for n, _ in filter(None, (one, other)))}: a backslash before a quote can be read in two ways",
                    hint=f'set in {FILE} how quotes are written: `quotes: doubled` ("") or `quotes: escaped` (\\")',
                )
    return "escaped" if escaped and not doubled else "doubled"


def _is_whole(path: Path, encoding: str | None, escaped: bool) -> bool:
    """Whether all rows can be read, and are of one length."""
    try:
        return len({len(row) for _, row in _rows(path, encoding, escaped)}) == 1
    except DataError:
        return False


def _rows(path: Path, encoding: str | None, escaped: bool) -> Iterator[tuple[int, list[Any]]]:
    separators = "\t" if ".tsv" in path.suffixes else ",;"
    first = next((line for _, line in text_lines(path, encoding)), "")
    separator = max(separators, key=first.count)
    lines = _Lines(path, encoding, separator, escaped=escaped)
    reader = csv.reader(lines, strict=True, delimiter=separator)
    before = 0
    try:
        for row in reader:
            number, lines.fresh = reader.line_num, True
            if lines.long or number - before > 1:  # a field over many lines may be long as well
                lines.long, row = False, list(map(short, row))
            before = number
            if row:
                yield number, row
    except csv.Error as error:
        raise misread(path, reader.line_num, error) from error


class _Lines:
    """The file's lines for the module csv; `long` is set when one was long enough to hold a field that is too long.

    `fresh` has to be set when a row is complete: any further line of a row begins in quotes.
    """

    def __init__(self, path: Path, encoding: str | None, separator: str, *, escaped: bool) -> None:
        self._lines: Iterable[tuple[int, str]] = text_lines(path, encoding, without=self._without)
        self._separator, self._escaped = separator.encode(), escaped
        self.long, self.fresh = False, True

    def _without(self) -> SeparatedLine:
        return SeparatedLine(self._separator, escaped=self._escaped, inside=not self.fresh)

    def __iter__(self) -> Iterator[str]:
        inside = 0  # characters of whole lines inside one field
        for _, line in self._lines:
            if len(line) > MAX_FIELD:
                self.long = True
            text = BEFORE_A_QUOTE.sub(_doubled, line) if self._escaped else line
            inside = inside + len(text) if not self.fresh and INSIDE.fullmatch(text) else 0
            self.fresh = False
            yield text if inside <= LONGEST_VALUE else ""


def _doubled(match: re.Match[str]) -> str:
    """Backslashes before a quote: each pair is one, and one that is left makes the quote a part of the field."""
    pairs, odd = divmod(len(match[1]), 2)
    return "\\" * pairs + ('""' if odd else '"')
