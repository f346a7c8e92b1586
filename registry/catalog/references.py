"""The names by which adapters are called: `NAME`, `NAME@vN` or `NAME@ALIAS`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..errors import InvalidReferenceError, UsageError
from ..filenames import is_reserved
from ..redaction import check_no_secret

SPIRIT = "spirit"
CHAMPION = "champion"
LORA, PERSONALISED_LORA, BI_TUNING = "lora", "personalised-lora", "bi-tuning"  # kinds of adapters
MERGE, INDEX = "merge", "index"  # kinds of builds
A_FILE = "a file"  # in the place of the name of a recipe that has none

_SLUG = r"[a-z0-9][a-z0-9-]{0,62}"
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")
_PATTERNS = {
    "domain": (re.compile(_SLUG), "up to 63 of a-z, 0-9 and -, not starting with -"),
    "base": (re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"), "up to 63 letters, digits, '.', '_' and '-'"),
    "alias": (re.compile(rf"(?!v[0-9]+$){_SLUG}"), "up to 63 of a-z, 0-9 and -, and not of the form vN"),
    "recipe": (re.compile(_SLUG), "up to 63 of a-z, 0-9 and -, not starting with -"),
    "template": (re.compile(_SLUG), "up to 63 of a-z, 0-9 and -, not starting with -"),
    "token": (re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}"), "up to 63 letters, digits, '.', '_', '@' and '-'"),
    "webhook": (re.compile(_SLUG), "up to 63 of a-z, 0-9 and -, not starting with -"),
}

_A = {
    "domain": "a domain",
    "base": "a base",
    "alias": "an alias",
    "recipe": "a recipe",
    "template": "a template",
    "token": "a token",
    "webhook": "a webhook",
}


@dataclass(frozen=True)
class Reference:
    """A domain's name (or `spirit`), and at most one of a version and an alias."""

    name: str
    version: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises InvalidReferenceError."""
        name, at, suffix = text.partition("@")
        if not _PATTERNS["domain"][0].fullmatch(name):
            raise _invalid(text)
        if not at:
            return cls(name)
        if version := _VERSION.fullmatch(suffix):
            return cls(name, version=int(version[1]))
        if not _PATTERNS["alias"][0].fullmatch(suffix):
            raise _invalid(text)
        return cls(name, alias=suffix)

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}@v{self.version}"
        return self.name if self.alias is None else f"{self.name}@{self.alias}"


def _invalid(text: str) -> InvalidReferenceError:
    return InvalidReferenceError(
        f"{text!r} is not a reference",
        hint="write NAME, NAME@vN or NAME@ALIAS, where NAME is a domain or 'spirit'",
    )


def check_text(what: str, text: str) -> str:
    """The text itself; UsageError if it has what paths may have and databases may not: bytes that are not UTF-8, or NUL."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UsageError(f"the {what} {text!r} is not UTF-8")
    if "\0" in text:
        raise UsageError(f"the {what} {text!r} has a NUL character")
    return text


def check_name(kind: Literal["domain", "base", "alias", "recipe", "template", "token", "webhook"], text: str) -> str:
    """The name itself if it may be given to a `kind`, otherwise UsageError."""
    pattern, rule = _PATTERNS[kind]
    if not pattern.fullmatch(text):
        raise UsageError(f"{text!r} cannot be the name of {_A[kind]}", hint=f"the name of {_A[kind]} is {rule}")
    check_no_secret(f"name of {_A[kind]}", text)
    if kind in ("domain", "base") and (is_reserved(text) or text.endswith(".")):
        raise UsageError(
            f"{text!r} cannot be the name of a {kind}: it becomes a folder's name, and Windows reserves it",
            hint="choose another name",
        )
    if kind == "domain" and text == SPIRIT:
        raise UsageError("'spirit' is reserved for the base spirit", hint="choose another domain name")
    return text


def did_you_mean(text: str, known: Iterable[str], *, before: str = "") -> str:
    """`; did you mean 'x'?` where a known name is much like the text, with what stands `before` it; nothing else."""
    near = near_name(text, known)
    return "" if near is None else f"; did you mean {before + near!r}?"


def near_name(text: str, known: Iterable[str]) -> str | None:
    """The known name that is most like the text, if any is."""
    near = difflib.get_close_matches(text[:100], list(known), n=1, cutoff=0.6)
    return near[0] if near else None
