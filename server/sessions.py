"""Sessions of people in a browser: a signed cookie that names a token's row, and what forms carry against requests from elsewhere.

The cookie holds no secret of the token; revoking the token ends its sessions, for every request looks at the row.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from fastapi import Request, Response
from itsdangerous import BadData, URLSafeTimedSerializer

from ..registry.errors import StoreError, UsageError
from ..registry.ownership import private_file, private_folder
from ..registry.settings import Settings
from .oidc import Attempt, Person

COOKIE = "reccocktail_session"
ATTEMPT, ATTEMPT_PATH = "reccocktail_oidc", "/login/oidc"
ATTEMPT_SECONDS = 600
HOURS = 12
VARIABLE = "RECCOCKTAIL_SESSION_KEY"
SHORTEST_KEY = 32  # characters


@dataclass(frozen=True)
class Session:
    """`token` is the id of the token that somebody logged in with, `person` who logged in at a provider; neither: somebody who did not log in."""

    token: int | None
    nonce: str
    person: Person | None = None

    @property
    def is_login(self) -> bool:
        return self.token is not None or self.person is not None

    @classmethod
    def new(cls, token: int | None = None, person: Person | None = None) -> Session:
        return cls(token, secrets.token_urlsafe(16), person)


class Sessions:
    """Reads and writes the cookies with one key, which all instances of a server share; `secure`: over https alone."""

    def __init__(self, key: str, *, secure: bool = False) -> None:
        self._key, self._secure = key.encode(), secure
        self._signer = URLSafeTimedSerializer(key, salt="session")
        self._attempts = URLSafeTimedSerializer(key, salt="oidc")

    def read(self, request: Request) -> Session | None:
        """None without a cookie, for one that was not signed by us, and after HOURS."""
        try:
            token, nonce, *rest = self._signer.loads(request.cookies.get(COOKIE, ""), max_age=HOURS * 3600)
            person = Person(rest[0], rest[1], tuple(rest[2])) if rest else None
        except (BadData, ValueError, TypeError, IndexError):
            return None
        return Session(token, nonce, person)

    def write(self, request: Request, response: Response, session: Session) -> None:
        person = [] if session.person is None else astuple(session.person)
        self._set(
            request, response, (COOKIE, "/"), self._signer.dumps([session.token, session.nonce, *person]), HOURS * 3600
        )

    def read_attempt(self, request: Request) -> Attempt | None:
        """The login at a provider that this browser has begun; None without one, and after ATTEMPT_SECONDS."""
        try:
            return Attempt(*self._attempts.loads(request.cookies.get(ATTEMPT, ""), max_age=ATTEMPT_SECONDS))
        except (BadData, ValueError, TypeError):
            return None

    def write_attempt(self, request: Request, response: Response, attempt: Attempt) -> None:
        value = self._attempts.dumps(astuple(attempt))
        self._set(request, response, (ATTEMPT, ATTEMPT_PATH), value, ATTEMPT_SECONDS)

    def end_attempt(self, response: Response) -> None:
        response.delete_cookie(ATTEMPT, path=ATTEMPT_PATH)

    def _set(
        self, request: Request, response: Response, where: tuple[str, str], value: str | bytes, seconds: int
    ) -> None:
        """`where` is the cookie's name and path. It is sent with the way back from a provider, and with no other site's requests."""
        assert isinstance(value, str)
        secure = self._secure or request.url.scheme == "https"
        name, path = where
        response.set_cookie(name, value, seconds, httponly=True, secure=secure, samesite="lax", path=path)

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
