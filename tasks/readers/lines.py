"""Lines of plain and gzipped files, bounded in length, and what is wrong with one: the file, the line, the reason."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError

MAX_LINE_BYTES = 1_000_000  # a compressed line can hide gigabytes; no honest record is this long
BLOCK_BYTES = 1 << 20

_DECODER = json.JSONDecoder(parse_constant=lambda _: None)  # NaN is how tables spell a missing value


def misread(path: Path, number: int, error: Exception, *, unit: str = "line") -> DataError:
    return DataError(f"{path}, {unit} {number}: {error}")


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The file's lines with their numbers, from 1. Raises DataError for what cannot be read or is too long."""
    number, rest = 0, b""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                *whole, rest = (rest + block).split(b"\n")
                for line in whole:
                    number += 1
                    if len(line) >= MAX_LINE_BYTES:
                        raise _too_long(path, number)
                    yield number, line + b"\n"
                if len(rest) > MAX_LINE_BYTES:
                    raise _too_long(path, number + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}, after line {number}: cannot be read ({error})") from error
    if rest:
        yield number + 1, rest


def _too_long(path: Path, number: int) -> DataError:
    return DataError(f"{path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes")


def text_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Lines as text, without a byte order mark. Raises DataError for bytes that are not of the encoding."""
    for number, line in lines(path):
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError as error:
            raise misread(path, number, ValueError(f"is not {encoding}: {error.reason}")) from error
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """One JSON object a line, with the line's number; blank lines are passed over."""
    for number, line in lines(path):
        if not line.isspace():
            try:
                yield number, json_object(line)
            except (ValueError, RecursionError) as error:
                raise misread(path, number, error) from error


def json_object(line: bytes | str) -> dict[str, Any]:
    """Raises ValueError, or RecursionError for a line that is nested too deeply."""
    text = line if isinstance(line, str) else line.decode("utf-8", "surrogatepass")
    if text.startswith("{"):
        record, end = _DECODER.raw_decode(text)  # without the looks at blanks on both sides
        if not text[end:].strip():
            return record
    record = _DECODER.decode(text.removeprefix("\ufeff"))
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    return record


def split_rows(path: Path, separator: str, columns: int, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of a file that knows no quotes: its lines, cut at every separator into so many columns."""
    for number, line in text_lines(path, encoding):
        row = line.rstrip("\r\n").split(separator)
        if len(row) == columns:
            yield number, row
        elif any(row):
            raise misread(path, number, ValueError(f"expected {columns} columns, found {len(row)}"))
