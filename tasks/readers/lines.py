"""Lines of plain and gzipped files, bounded in length, and what is wrong with one: the file, the line, the reason."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DataError
from .long_values import LONGEST_VALUE, MAX_FIELD, JsonLine, LineWithoutLongValues, SeparatedLine

MAX_LINE_BYTES = 1_000_000  # a compressed line can hide gigabytes; no honest record is this long
LONGEST_BYTES = 16_000_000  # of a record without its long values
LONG_BYTES = 2 * LONGEST_VALUE  # from here on long values are not held
BLOCK_BYTES = 1 << 20
BOMS = {  # those of UTF-32 first: the one of UTF-16 is how the little-endian one begins
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

_DECODER = json.JSONDecoder(parse_constant=lambda _: None)  # NaN is how tables spell a missing value


class UnreadableError(ValueError):
    """A value that cannot be read, with the way out."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class TooLong:
    """Replaces a field that is longer than the limit; harmless in a column that is not read."""

    def __repr__(self) -> str:
        return f"a text of more than {MAX_FIELD:,} characters"


def misread(path: Path, number: int, error: Exception, *, unit: str = "line") -> DataError:
    """What is wrong with a line or row, with the way out that the error knows or else the usual one."""
    hint = getattr(error, "hint", None) or f"correct this {unit}, or take it out of the file"
    return DataError(f"{path}, {unit} {number}: {error}", hint=hint)


def lines(
    path: Path,
    encoding: str | None = None,
    *,
    longest: int = MAX_LINE_BYTES,
    without: Callable[[], LineWithoutLongValues] | None = None,
) -> Iterator[tuple[int, bytes]]:
    """The file's lines with their numbers, from 1, in UTF-8 if an encoding or a byte order mark names another one.

    `without` takes a long line's long values out of it. Raises DataError for what cannot be read or is too long.
    """
    number, rest, held = 0, [], 0
    long: LineWithoutLongValues | None = None
    try:
        for block in _blocks(path, encoding):
            *whole, last = block.split(b"\n")
            if whole:
                whole[0] = _joined(rest, whole[0], long)
                rest, held, long = [], 0, None
            for line in whole:
                number += 1
                if len(line) >= longest:
                    raise _too_long(path, number, longest)
                yield number, line + b"\n"
            if long is None and without and held + len(last) > LONG_BYTES:
                long = without()
                for piece in rest:
                    long.add(piece)
            if long is None:
                rest.append(last)
                held += len(last)
            else:
                long.add(last)
                held = long.kept
            if held > longest:
                raise _too_long(path, number + 1, longest)
    except UnicodeDecodeError as error:
        lost = number + 1 + error.object[: error.start].count(b"\n")
        raise not_encoded(path, lost, error) from error
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise DataError(
            f"{path}, after line {number}: cannot be read ({error})", hint="get the file again, whole"
        ) from error
    if held or long is not None:
        yield number + 1, _joined(rest, b"", long)


def _joined(rest: list[bytes], last: bytes, long: LineWithoutLongValues | None) -> bytes:
    if long is None:
        return b"".join((*rest, last))
    long.add(last)
    return long.whole()


def _blocks(path: Path, encoding: str | None) -> Iterator[bytes]:
    """The file's bytes; in UTF-8 where they have another encoding, by name or by a byte order mark, which goes first."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        block = file.read(BLOCK_BYTES)
        encoding = next((name for mark, name in BOMS.items() if block.startswith(mark)), encoding)
        if encoding in (None, "utf-8", "utf-8-sig"):
            block = block.removeprefix(codecs.BOM_UTF8)
            while block:
                yield block
                block = file.read(BLOCK_BYTES)
            return
        decoder = codecs.getincrementaldecoder(encoding)()
        while block:
            yield decoder.decode(block).encode(errors="surrogatepass")
            block = file.read(BLOCK_BYTES)
        yield decoder.decode(b"", final=True).encode(errors="surrogatepass")


def _too_long(path: Path, number: int, longest: int) -> DataError:
    return DataError(
        f"{path}, line {number}: longer than {longest:,} bytes",
        hint="leave out of the file what is not read (docs/data.md says what is), or shorten the record",
    )


def not_encoded(path: Path, number: int, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{path}, line {number}: is not {error.encoding}: {error.reason}",
        hint="name the encoding in dataset.yaml, such as `encoding: latin-1` or `encoding: cp1252`",
    )


def is_utf8(path: Path) -> bool:
    """Whether all of the file is UTF-8, or says by a byte order mark what it is."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for block in _blocks(path, None):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    except (OSError, EOFError, zlib.error):
        return True  # the reader of the lines reports where it is broken
    return True


def holds(path: Path, what: bytes, encoding: str | None = None) -> bool:
    """Whether these few bytes stand anywhere in the file, as UTF-8."""
    end = b""
    try:
        for block in _blocks(path, encoding):
            if what in end + block[: len(what)] or what in block:
                return True
            end = block[1 - len(what) :]
    except (OSError, EOFError, zlib.error, UnicodeError):
        return False  # reading the lines says where it is broken
    return False


def text_lines(
    path: Path, encoding: str | None = None, *, without: Callable[[], LineWithoutLongValues] | None = None
) -> Iterator[tuple[int, str]]:
    """Lines as text, without a byte order mark. Raises DataError for bytes that are not of the encoding."""
    for number, line in lines(path, encoding, longest=LONGEST_BYTES, without=without):
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            raise not_encoded(path, number, error) from error


def objects(path: Path, encoding: str | None = None, *, whole: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
    """One JSON object a line, with the line's number; blank lines are passed over, long values not kept unless the `whole` is read."""
    found = lines(path, encoding) if whole else lines(path, encoding, longest=LONGEST_BYTES, without=JsonLine)
    for number, line in found:
        if not line.isspace():
            try:
                record = json_object(line)
            except UnicodeDecodeError as error:
                raise not_encoded(path, number, error) from error
            except (ValueError, RecursionError) as error:
                raise misread(path, number, error) from error
            yield number, record if whole or len(line) <= MAX_FIELD else shortened(record)


def shortened(record: dict[str, Any]) -> dict[str, Any]:
    return {key: short(value) for key, value in record.items()}


def short(value: Any) -> Any:
    """The value, or the placeholder for a text that is too long to be read."""
    return TooLong() if isinstance(value, str) and len(value) > MAX_FIELD else value


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


def split_rows(
    path: Path, separator: str, columns: int, encoding: str | None = None
) -> Iterator[tuple[int, list[Any]]]:
    """Rows of a file that knows no quotes: its lines, cut at every separator into so many columns."""
    without = partial(SeparatedLine, separator.encode(), quoted=False)
    for number, line in text_lines(path, encoding, without=without):
        row: list[Any] = line.rstrip("\r\n").split(separator)
        if len(row) == columns:
            yield number, row if len(line) <= MAX_FIELD else list(map(short, row))
        elif any(row):
            raise misread(path, number, ValueError(f"expected {columns} columns, found {len(row)}"))
