"""Lines that are too long to be held, without their long values: those that nobody reads may have any length.

A value of more than `LONGEST_VALUE` bytes is replaced by a text that is too long to be read, so that it is refused where it is
asked for and passed over everywhere else. A line is taken in pieces, and no more is held than what is left of it.
"""

from __future__ import annotations

import re
from typing import Protocol

MAX_FIELD = 131_072  # characters of a value that is read
LONGEST_VALUE = 12 * MAX_FIELD  # bytes; a character takes at most 12 of them, as two escapes of JSON
STAND_IN = b"x" * (MAX_FIELD + 1)

_STRINGS = {quote: re.compile(rb"(?:[^\\%s]++|\\.)*+" % quote, re.DOTALL) for quote in (b'"', b"'")}
_OUTSIDE = re.compile(rb"[^\"'\[\]{},:]*+")
_ENDS = re.compile(rb"\\+\Z")


class LineWithoutLongValues(Protocol):
    """One line: pieces of it are added, and what is left of it is asked for once, without its end of line."""

    @property
    def kept(self) -> int:
        """Bytes that are held now."""
        ...

    def add(self, piece: bytes) -> None: ...

    def whole(self) -> bytes: ...


class _Values:
    """The values of a line, one after the other, and what stands between them."""

    def __init__(self) -> None:
        self._line, self._value, self._long = bytearray(), bytearray(), False

    @property
    def kept(self) -> int:
        return len(self._line) + len(self._value)

    def take(self, piece: bytes) -> None:
        """More of the present value."""
        if not self._long:
            self._value += piece
            if len(self._value) > LONGEST_VALUE:
                self._long = True
                self._value.clear()

    def end(self, stand_in: bytes, after: bytes = b"") -> None:
        self._line += (stand_in if self._long else bytes(self._value)) + after
        self._value.clear()
        self._long = False

    def whole(self) -> bytes:
        return bytes(self._line)


class JsonLine:
    """A line with an object of JSON, or of Python's literals: values are those of the object itself, however they are nested."""

    def __init__(self) -> None:
        self._values, self._depth, self._quote, self._rest = _Values(), 0, b"", b""

    @property
    def kept(self) -> int:
        return self._values.kept + len(self._rest)

    def add(self, piece: bytes) -> None:
        text, at = self._rest + piece, 0
        cut = _ENDS.search(text)  # an escape whose second half comes with the next piece
        keep = (cut.end() - cut.start()) % 2 if cut else 0
        text, self._rest = text[: len(text) - keep], text[len(text) - keep :]
        while at < len(text):
            if self._quote:
                found = _STRINGS[self._quote].match(text, at)
                end = found.end() if found else at
                if end < len(text):
                    end += 1  # the quote
                    self._quote = b""
                self._values.take(text[at:end])
                at = end
                continue
            found = _OUTSIDE.match(text, at)
            end = found.end() if found else at
            self._values.take(text[at:end])
            if end < len(text):
                self._sign(text[end : end + 1])
            at = end + 1

    def _sign(self, sign: bytes) -> None:
        if sign in (b'"', b"'"):
            self._quote = sign
        closes = sign in (b"]", b"}")
        self._depth -= closes
        if self._depth == (0 if closes else 1) and sign in b",:}":
            self._values.end(b'"%s"' % STAND_IN, sign)
            return
        self._values.take(sign)
        if sign in (b"[", b"{"):
            self._depth += 1
            if self._depth == 1:
                self._values.end(sign)

    def whole(self) -> bytes:
        self._values.take(self._rest)
        self._values.end(STAND_IN)
        return self._values.whole()


class SeparatedLine:
    """A line of fields; `quoted` if some may be in quotes, `escaped` if a backslash takes a quote in them, `inside` if the line begins in one."""

    def __init__(self, separator: bytes, *, quoted: bool = True, escaped: bool = False, inside: bool = False) -> None:
        self._separator, self._quoted = separator, quoted
        inner = rb'(?:[^"\\]++|\\.|"")*+' if escaped else rb'(?:[^"]++|"")*+'
        self._inner = re.compile(inner, re.DOTALL)
        # what a quote or a part of a separator means is seen by what follows it
        ends = rb'["\\]' if escaped else b'"' if quoted else re.escape(separator[:1])
        self._held = re.compile(ends + rb"+\Z")
        self._values, self._rest = _Values(), b""
        self._inside, self._begins = inside, not inside
        self._opened, self._closed = b"", b""

    @property
    def kept(self) -> int:
        return self._values.kept + len(self._rest)

    def add(self, piece: bytes) -> None:
        text = self._rest + piece
        held = self._held.search(text)
        keep = len(text) - held.start() if held else 0
        self._rest = text[len(text) - keep :]
        self._scan(text[: len(text) - keep])

    def _scan(self, text: bytes) -> None:
        at = 0
        while at < len(text):
            if self._begins and self._quoted and text.startswith(b'"', at):
                self._inside, self._opened = True, b'"'
                self._values.take(b'"')
                at += 1
            self._begins = False
            if self._inside:
                found = self._inner.match(text, at)
                end = found.end() if found else at
                if end < len(text):
                    end += 1
                    self._inside, self._closed = False, b'"'
                self._values.take(text[at:end])
                at = end
                continue
            end = text.find(self._separator, at)
            self._values.take(text[at : end if end >= 0 else len(text)])
            if end < 0:
                return
            self._end(self._separator)
            at = end + len(self._separator)

    def _end(self, after: bytes = b"") -> None:
        self._values.end(self._opened + STAND_IN + self._closed, after)
        self._opened = self._closed = b""
        self._begins = True

    def whole(self) -> bytes:
        self._scan(self._rest)
        self._end()
        return self._values.whole()
