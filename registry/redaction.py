"""Text without secrets: for errors, logs and rows, whoever wrote the text."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

SECRET = "[secret]"  # noqa: S105  what stands in the place of one

# The Hub's tokens are `hf_` and 34 letters and digits, those of organisations `api_org_…`. Names such as hf_xet, hf_transfer and
# hf_hub_download have neither capitals nor digits, or fewer letters in a row.
_TOKEN = re.compile(
    r"\b(?:hf_|api_org_)(?:[A-Za-z0-9]{24,}|(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{10,})"
    r"|eyJ[\w.-]{20,}|\bbearer\s+(?!token)[^\s'\"]{4,}['\"]?",
    re.IGNORECASE,
)
_PASSWORD = re.compile(r"([a-z][a-z0-9+.-]*://[^\s/@:'\"]*):(?!\d+(?:/|\s|$))[^\s'\"]*@", re.IGNORECASE)
_USER = re.compile(r"(https?://)[^\s/@:'\"]+@", re.IGNORECASE)
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", re.IGNORECASE)  # storage hosts' URLs are signed in theirs
_PARAMETER = re.compile(
    r"([?&][^=&\s'\"]*(?:password|passwd|token|secret|key|signature|credential)[^=&\s'\"]*=)[^&\s'\"#]+", re.IGNORECASE
)
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_SHORTEST = 8  # characters of a variable's value that is looked for: a shorter one could be any word


def redacted(text: str, *, environ: Mapping[str, str] | None = None) -> str:
    """The text without tokens of the Hub, passwords in URLs, queries of web addresses, and the values of variables that hold secrets."""
    for name in _VARIABLES:
        value = (os.environ if environ is None else environ).get(name, "")
        if len(value) >= _SHORTEST:
            text = text.replace(value, SECRET)
    text = _PARAMETER.sub(r"\1***", _QUERY.sub(r"\1?…", _USER.sub(r"\1", _PASSWORD.sub(r"\1:***@", text))))
    return _TOKEN.sub(SECRET, text)


def redacted_values(value: Any) -> Any:
    """Plain JSON with every text in it `redacted`."""
    match value:
        case str():
            return redacted(value)
        case Mapping():
            return {key: redacted_values(each) for key, each in value.items()}
        case list() | tuple():
            return [redacted_values(each) for each in value]
        case _:
            return value
