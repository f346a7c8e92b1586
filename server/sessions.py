"""Sessions of people in a browser: a signed cookie that names a token's row, and what forms carry against requests from elsewhere.

The cookie holds no secret of the token; revoking the token ends its sessions, for every request looks at the row.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request, Response
from itsdangerous import BadData, URLSafeTimedSerializer

from ..registry.errors import StoreError, UsageError
from ..registry.ownership import private_file, private_folder
from ..registry.settings import Settings

COOKIE = "reccocktail_session"
HOURS = 12
VARIABLE = "RECCOCKTAIL_SESSION_KEY"
SHORTEST_KEY = 32  # characters


@dataclass(frozen=True)
class Session:
    """`token` is the id of the token that somebody logged in with; None for somebody on this machine who did not."""

    token: int | None
    nonce: str

    @classmethod
    def new(cls, token: int | None = None) -> Session:
        return cls(token, secrets.token_urlsafe(16))


class Sessions:
    """Reads and writes the cookie with one key, which all instances of a server share."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()
        self._signer = URLSafeTimedSerializer(key, salt="session")

    def read(self, request: Request) -> Session | None:
        """None without a cookie, for one that was not signed by us, and after HOURS."""
        try:
            token, nonce = self._signer.loads(request.cookies.get(COOKIE, ""), max_age=HOURS * 3600)
        except (BadData, ValueError, TypeError):
            return None
        return Session(token, nonce)

    def write(self, request: Request, response: Response, session: Session) -> None:
        value = self._signer.dumps([session.token, session.nonce])
        secure = request.url.scheme == "https"
        assert isinstance(value, str)
        response.set_cookie(COOKIE, value, HOURS * 3600, httponly=True, secure=secure, samesite="lax", path="/")

    def csrf(self, session: Session) -> str:
        """What a form of this session carries: nobody who cannot read its pages can know it."""
        return hmac.new(self._key, b"csrf:" + session.nonce.encode(), hashlib.sha256).hexdigest()

    def is_csrf(self, session: Session | None, given: str) -> bool:
        return session is not None and hmac.compare_digest(
            self.csrf(session).encode(), given.encode("utf-8", "replace")
        )


def session_key(settings: Settings) -> str:
    """The variable's, which several instances share, else the home's, made where it is missing. Raises UsageError, StoreError."""
    if given := os.environ.get(VARIABLE):
        if len(given) < SHORTEST_KEY:
            raise UsageError(f"{VARIABLE} is shorter than {SHORTEST_KEY} characters", hint="openssl rand -hex 32")
        return given
    path = settings.home / "server.key"
    try:
        if not path.exists():
            _make_key(path)
        return path.read_text().strip()
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error.strerror}", hint=f"or set {VARIABLE}") from error


def _make_key(path: Path) -> None:
    """Whole or not at all, and once, if several servers begin at the same time."""
    private_folder(path.parent)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    private_file(draft)
    try:
        draft.write_text(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
