"""Tokens: who may ask a server, and for what.

A token is 256 random bits. It is shown once; the registry keeps its SHA-256, from which it cannot be had back, and which needs no salt because
nobody can try 2^256 texts.
"""

from __future__ import annotations

import builtins
import hashlib
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from ..database.connection import Database
from ..database.tables import TokenRow, now
from ..errors import ConflictError, NotFoundError, UnavailableError, UsageError
from . import events
from .domains import find_domain, lock_new_names
from .events import EventIds
from .records import Record
from .references import check_name, did_you_mean

PREFIX = "rct_"  # so that a token is recognised in texts, and left out of them
SCOPES = ("read", "register", "build", "promote:DOMAIN", "publish", "admin")
USE_NOTED_EVERY = timedelta(minutes=1)
_PROMOTE = re.compile(r"promote:(\*|[a-z0-9][a-z0-9-]{0,62})")
_SPAN = re.compile(r"([1-9]\d{0,4})([hdwy])")
_HOURS = {"h": 1, "d": 24, "w": 24 * 7, "y": 24 * 365}


@dataclass(frozen=True)
class Token(Record):
    """`scopes` are of SCOPES, with a domain's name, `spirit` or `*` after `promote:`. `last_used_at` is good to a minute."""

    id: int
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def is_valid(self, moment: datetime | None = None) -> bool:
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > (moment or now()))


@dataclass(frozen=True)
class NewToken:
    """What is shown once."""

    token: Token
    secret: str


class Tokens:
    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, scopes: Sequence[str], *, lasts: timedelta | None) -> NewToken:
        """`lasts` None: until it is revoked. Raises UsageError; ConflictError where a token of the name is not revoked."""
        check_name("token", name)
        wanted = checked_scopes(scopes)
        secret = PREFIX + secrets.token_urlsafe(32)
        with self._database.writing() as session:
            lock_new_names(session)
            if (known := _standing(session, name)) is not None:
                since = f"{known.created_at:%Y-%m-%d}"
                raise ConflictError(
                    f"there is a token {name!r} since {since}", hint=f"reccocktail token revoke {name}, or another name"
                )
            for scope in wanted:
                if (domain := scope.partition(":")[2]) not in ("", "*"):
                    find_domain(session, domain)
            expires = None if lasts is None else now() + lasts
            about = {"scopes": [*wanted], "expires_at": None if expires is None else expires.isoformat()}
            event = events.append(session, "token.added", name, about, EventIds())
            row = TokenRow(name=name, digest=_digest(secret), scopes=[*wanted], expires_at=expires, event_id=event.id)
            session.add(row)
            session.flush()
            return NewToken(_token(row), secret)

    def revoke(self, name: str) -> Token:
        """For good: whoever has it, and sessions that began with it, are refused from now on. Raises NotFoundError."""
        with self._database.writing() as session:
            lock_new_names(session)
            if (row := _standing(session, name)) is None:
                near = did_you_mean(name, session.scalars(select(TokenRow.name).where(TokenRow.revoked_at.is_(None))))
                raise NotFoundError(f"there is no token {name!r}{near}", hint="`reccocktail token list` shows them")
            event = events.append(session, "token.revoked", name, {}, EventIds())
            row.revoked_at = event.created_at
            session.flush()
            return _token(row)

    def list(self) -> builtins.list[Token]:
        """Newest first, revoked and expired ones included."""
        with self._database.reading() as session:
            return [_token(row) for row in session.scalars(select(TokenRow).order_by(TokenRow.id.desc()))]

    def is_any_valid(self) -> bool:
        """Whether anybody could ask a server that wants tokens."""
        with self._database.reading() as session:
            return session.scalar(select(TokenRow.id).where(_is_valid(now())).limit(1)) is not None

    def of_secret(self, secret: str) -> Token | None:
        """The valid token that this is; its use is noted."""
        return self._found(TokenRow.digest == _digest(secret), _digest(secret))

    def of_id(self, id_: int) -> Token | None:
        """The token of a session, if it is still valid; its use is noted."""
        return self._found(TokenRow.id == id_)

    def _found(self, condition: ColumnElement[bool], digest: str | None = None) -> Token | None:
        moment = now()
        with self._database.reading() as session:
            row = session.scalar(select(TokenRow).where(condition, _is_valid(moment)))
            # the index has found it by comparing; in the end it is compared in constant time
            if row is None or (digest is not None and not secrets.compare_digest(row.digest, digest)):
                return None
            found = _token(row)
        if found.last_used_at is None or moment - found.last_used_at > USE_NOTED_EVERY:
            with suppress(UnavailableError):  # a busy database refuses nobody
                self._note_use(found.id, moment)
        return found

    def _note_use(self, id_: int, moment: datetime) -> None:
        with self._database.writing() as session:
            session.execute(update(TokenRow).where(TokenRow.id == id_).values(last_used_at=moment))


def checked_scopes(scopes: Sequence[str]) -> tuple[str, ...]:
    """Each once. Raises UsageError for none, and for unknown ones."""
    wanted = tuple(dict.fromkeys(scopes))
    for scope in wanted:
        if scope not in SCOPES[:3] + SCOPES[4:] and not _PROMOTE.fullmatch(scope):
            raise UsageError(f"{scope!r} is no scope", hint=f"scopes are {', '.join(SCOPES)}; promote:* is all domains")
    if not wanted:
        raise UsageError("a token without a scope may do nothing", hint=f"scopes are {', '.join(SCOPES)}")
    return wanted


def span(text: str) -> timedelta | None:
    """Of `12h`, `90d`, `4w`, `1y`; `never` is None. Raises UsageError."""
    if text == "never":
        return None
    if (found := _SPAN.fullmatch(text)) is None:
        raise UsageError(f"{text!r} is not a span of time", hint="write 12h, 90d, 4w, 1y, or never")
    return timedelta(hours=int(found[1]) * _HOURS[found[2]])


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _is_valid(moment: datetime) -> ColumnElement[bool]:
    return TokenRow.revoked_at.is_(None) & or_(TokenRow.expires_at.is_(None), TokenRow.expires_at > moment)


def _standing(session: Session, name: str) -> TokenRow | None:
    return session.scalar(select(TokenRow).where(TokenRow.name == name, TokenRow.revoked_at.is_(None)))


def _token(row: TokenRow) -> Token:
    return Token(
        row.id,
        row.name,
        tuple(row.scopes),
        row.created_at,
        row.created_by,
        row.expires_at,
        row.revoked_at,
        row.last_used_at,
    )
