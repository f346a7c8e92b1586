"""Text without secrets: for errors, logs and rows, from any source."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from .errors import UsageError

SECRET = "[secret]"  # noqa: S105  what stands in the place of one

# The Hub's tokens are `hf_` and 34 letters and digits, those of organisations `api_org_…`. Names such as hf_xet, hf_transfer and
# hf_hub_download have neither capitals nor digits, or fewer letters in a row.
_TOKEN = re.compile(
    r"\b(?:hf_|api_org_)(?:[A-Za-z0-9]{24,}|(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{10,})"
    r"|\brct_[\w-]{43}"  # a token of a server of ours
    r"|eyJ[\w.-]{20,}|\bbearer\s+(?!token)[^\s'\"]{4,}['\"]?",
    re.IGNORECASE,
)
_WHOLE_TOKEN = re.compile(r"\b(?:(?:hf_|api_org_)[A-Za-z0-9]{30,}|rct_[\w-]{43})")
# a path that was made of a URL has lost one of its slashes
# and no scheme is long: without a limit, a text in one piece took time that grew with its square
_PASSWORD = re.compile(r"([a-z][a-z0-9+.-]{1,60}:/{1,2}[^\s/@:'\"]*):(?!\d+(?:/|\s|$))[^\s'\"]*@", re.IGNORECASE)
_USER = re.compile(r"(https?:/{1,2})[^\s/@:'\"]+@", re.IGNORECASE)
_QUERY = re.compile(r"(https?:/{1,2}[^\s?'\"]+)\?[^\s'\"]+", re.IGNORECASE)  # storage hosts' URLs are signed in theirs
_PARAMETER = re.compile(
    r"([?&][^=&\s'\"]*(?:password|passwd|token|secret|key|signature|credential)[^=&\s'\"]*=)[^&\s'\"#]+", re.IGNORECASE
)
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_SHORTEST = 8  # characters of a variable's value that is looked for: a shorter one could be any word


def redacted(text: str, *, environ: Mapping[str, str] | None = None) -> str:
    """The text without tokens of the Hub, passwords in URLs, queries of web addresses, and the values of variables that hold secrets."""
    for value in _values(environ):
        text = text.replace(value, SECRET)
    text = _PARAMETER.sub(r"\1***", _QUERY.sub(r"\1?…", _USER.sub(r"\1", _PASSWORD.sub(r"\1:***@", text))))
    return _TOKEN.sub(SECRET, text)


def _values(environ: Mapping[str, str] | None) -> list[str]:
    found = [(os.environ if environ is None else environ).get(name, "") for name in _VARIABLES]
    return [value for value in found if len(value) >= _SHORTEST]


def check_no_secret(what: str, text: str) -> str:
    """The name or path itself, which cannot be changed without changing what it means.

    Raises UsageError, without the text, if it surely has a secret in it: a whole token of the Hub, a password or a signature in a URL, or
    the value of a variable that holds one. A folder may well be called `hf_checkpoint2024`.
    """
    if any(value in text for value in _values(None)) or any(
        pattern.search(text) for pattern in (_WHOLE_TOKEN, _PASSWORD, _PARAMETER)
    ):
        raise UsageError(
            f"the {what} has what looks like a secret in it: a token, a password or a signed URL",
            hint="leave it out; one that was typed into a shell is in its history, so replace it where it came from",
        )
    return text


def redacted_values(value: Any) -> Any:
    """Plain JSON, or a record of it, with every text in it `redacted`."""
    match value:
        case str():
            return redacted(value)
        case Mapping():
            return {redacted_values(key): redacted_values(each) for key, each in value.items()}
        case list():
            return [redacted_values(each) for each in value]
        case tuple():
            return tuple(redacted_values(each) for each in value)
        case _ if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{each.name: redacted_values(getattr(value, each.name)) for each in fields(value)})
        case _:
            return value
