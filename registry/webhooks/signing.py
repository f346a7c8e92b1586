"""Secrets of webhooks, by reference, and signatures over what is sent.

The database has where a secret is (`env:NAME` or `file:/path`), and whoever delivers reads it there: a copy of the database, an
export or a log signs nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import UsageError, WebhookError
from ..redaction import check_no_secret

HERE = "this process"
SHORTEST, LONGEST = 16, 4096  # bytes of a secret
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_HINT = "openssl rand -hex 32 makes one"


def reference(variable: str | None, file: Path | None) -> str:
    """What the database keeps. Raises UsageError unless exactly one place is given, by a name that can be one."""
    if (variable is None) == (file is None):
        raise UsageError("say where the secret is: either --secret-env VARIABLE or --secret-file FILE")
    if file is not None:
        return "file:" + check_no_secret("path of the secret", str(file.expanduser().absolute()))
    assert variable is not None
    if not _VARIABLE.fullmatch(variable):
        # without the text: it may well be the secret itself
        raise UsageError("--secret-env takes the name of an environment variable, not the secret itself")
    return f"env:{check_no_secret('name of the variable', variable)}"


def read_secret(where: str, environ: Mapping[str, str] | None = None, *, reader: str = HERE) -> bytes:
    """The secret. Raises WebhookError, which says where it was looked for and whose environment that is, if there is none or it is too short.

    `reader` is who reads it, for that message: this process, or the server that somebody asks.
    """
    kind, _, name = where.partition(":")
    found = _from_file(Path(name), reader) if kind == "file" else (os.environ if environ is None else environ).get(name)
    if found is None:
        mended = f"export {name}=…" if reader == HERE else f"set {name} where {reader} is started, and start it again"
        raise WebhookError(
            f"the variable {name} with the secret is not set in the environment of {reader}", hint=mended
        )
    secret = found.strip().encode("utf-8", "surrogateescape")
    if not SHORTEST <= len(secret) <= LONGEST:
        raise WebhookError(
            f"the secret in {named(where)}, as {reader} reads it, has not {SHORTEST} to {LONGEST} bytes", hint=_HINT
        )
    return secret


def _from_file(path: Path, reader: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(LONGEST + 3).decode("utf-8", "surrogateescape")  # more is too long, and so refused
    except OSError as error:
        raise WebhookError(f"{reader} cannot read the secret from {path}: {error.strerror}", hint=_HINT) from error


def named(where: str) -> str:
    """`the variable X` or `the file /x`."""
    kind, _, name = where.partition(":")
    return f"the {'file' if kind == 'file' else 'variable'} {name}"


def signature(secret: bytes, timestamp: int, body: bytes) -> str:
    """`sha256=` and the HMAC, in hex, of the timestamp (seconds since 1970), a dot, and the body."""
    return "sha256=" + hmac.new(secret, f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
