"""Logging people in at an OpenID Connect provider: authorization code with PKCE, and the ID token that says who they are.

https://openid.net/specs/openid-connect-core-1_0.html, RFC 7636 (PKCE), RFC 9207 (the issuer in the answer). What the provider says of a person
becomes a name and, by a mapping of groups that the server's configuration has, scopes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..registry.catalog.tokens import checked_scopes
from ..registry.errors import UsageError
from ..tasks.documents import read_yaml
from .errors import ProviderError, UnauthenticatedError

if TYPE_CHECKING:
    from joserfc.jwk import KeySet

CALLBACK = "/login/oidc/callback"
EVERYBODY = "*"
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""What an ID token may be signed with: a key that only the provider has. Never `none`, and nothing with the client's secret."""
KEY_TYPES = ("RSA", "EC", "OKP")
LEEWAY = 60  # seconds that clocks may differ
KEPT_SECONDS, LEAST_SECONDS = (
    3600.0,
    60.0,
)  # how long keys are kept, and how soon they are fetched again for one that is unknown
TIMEOUT = 10.0
LONGEST_NAME = 100
LOOPBACK = ("localhost", "127.0.0.1", "::1")
Text = Annotated[str, Field(min_length=1, max_length=500)]


class OidcOptions(BaseModel):
    """The file of `server --oidc`. `name` is the claim that identifies people, `groups` the one that lists their groups.

    `scopes` are by group; those of `*` are everybody's. Who gets none may not log in. `public_url` is the server's address as browsers have it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    issuer: Text
    client_id: Text
    client_secret_env: Text | None = None
    public_url: Text
    label: Text = "OpenID Connect"
    request: tuple[Text, ...] = ("openid", "email", "profile")
    name: Text = "email"
    groups: Text = "groups"
    scopes: dict[Text, tuple[str, ...]]

    @classmethod
    def read(cls, path: Path) -> OidcOptions:
        """Raises UsageError for what is no such file, an address without https and a scope that is none."""
        try:
            found = cls.model_validate(read_yaml(path))
        except (OSError, ValidationError, ValueError) as error:
            raise UsageError(f"{path}: {error}", hint="docs/server.md shows such a file") from error
        for address in (found.issuer, found.public_url):
            _expect_encrypted(address)
        if "openid" not in found.request:
            raise UsageError(f"{path}: request lacks the scope openid")
        for scopes in found.scopes.values():
            checked_scopes(scopes)
        return found

    @property
    def callback(self) -> str:
        return self.public_url.rstrip("/") + CALLBACK

    @property
    def is_encrypted(self) -> bool:
        return self.public_url.startswith("https:")

    def scopes_of(self, groups: tuple[str, ...]) -> frozenset[str]:
        """Those of everybody and of each group."""
        return frozenset(scope for group in (EVERYBODY, *groups) for scope in self.scopes.get(group, ()))

    def secret(self) -> str | None:
        """From the environment alone. Raises UsageError where it is not there."""
        if self.client_secret_env is None:
            return None
        if not (found := os.environ.get(self.client_secret_env)):
            raise UsageError(f"the variable {self.client_secret_env} is not set", hint="it has the client's secret")
        return found


@dataclass(frozen=True)
class Person:
    """Who logged in at a provider; `groups` are those that the configuration knows."""

    issuer: str
    name: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Attempt:
    """A login that has begun, as a cookie keeps it: nobody else can end it. `after` is the page that it leads to."""

    state: str
    nonce: str
    verifier: str
    after: str | None = None

    @classmethod
    def new(cls, after: str | None = None) -> Attempt:
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        return cls(state, nonce, verifier, after)

    @property
    def challenge(self) -> str:
        """RFC 7636, S256."""
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@dataclass(frozen=True)
class _Known:
    """What the provider says of itself, its keys, and when they were fetched."""

    about: Mapping[str, Any]
    keys: KeySet
    at: float


class Provider:
    """One provider; its addresses and keys are fetched when they are needed, and kept for an hour."""

    def __init__(self, options: OidcOptions, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises UsageError where the extra is not installed, or the client's secret is not there."""
        if find_spec("joserfc") is None:
            raise UsageError("joserfc is not installed", hint="pip install 'reccocktail[oidc]'")
        self.options, self._secret, self._clock = options, options.secret(), clock
        import httpx2

        self._http = httpx2.Client(timeout=TIMEOUT, follow_redirects=False)
        self._known: _Known | None = None
        self._lock = threading.Lock()

    def address(self, attempt: Attempt) -> str:
        """Where a browser goes to log in. Raises ProviderError."""
        query = {
            "response_type": "code",
            "client_id": self.options.client_id,
            "redirect_uri": self.options.callback,
            "scope": " ".join(self.options.request),
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": attempt.challenge,
            "code_challenge_method": "S256",
        }
        target = str(self._get().about["authorization_endpoint"])
        return f"{target}{'&' if urlsplit(target).query else '?'}{urlencode(query)}"

    def person(self, attempt: Attempt, answer: Mapping[str, str]) -> Person:
        """Who the provider's answer, the query of the callback, is about. Raises UnauthenticatedError, ProviderError."""
        if not hmac.compare_digest(attempt.state.encode(), answer.get("state", "").encode()):
            raise UnauthenticatedError("the answer is not of this login", hint="begin again at /login")
        about = self._get().about
        is_named = bool(about.get("authorization_response_iss_parameter_supported"))
        if answer.get("iss", None if is_named else about["issuer"]) != about["issuer"]:
            raise UnauthenticatedError("the answer is of another provider", hint="begin again at /login")
        if "code" not in answer:
            raise UnauthenticatedError(
                f"the provider refused: {answer.get('error', 'it gave no reason')!r:.100}", hint="begin again at /login"
            )
        claims = self._claims(self._token(about, attempt, answer["code"]), attempt.nonce)
        return self._person(claims)

    def _token(self, about: Mapping[str, Any], attempt: Attempt, code: str) -> str:
        """The ID token for a code."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.options.callback,
            "client_id": self.options.client_id,
            "code_verifier": attempt.verifier,
        }
        methods = about.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        auth = None
        if self._secret is not None and "client_secret_basic" in methods:
            auth = (self.options.client_id, self._secret)
        elif self._secret is not None:
            form["client_secret"] = self._secret
        found = self._ask("POST", str(about["token_endpoint"]), data=form, auth=auth)
        if not isinstance(token := found.get("id_token"), str):
            raise UnauthenticatedError("the provider gave no ID token", hint="begin again at /login")
        return token

    def _claims(self, token: str, nonce: str) -> Mapping[str, Any]:
        """Of an ID token that the provider signed, for this client and login. Raises UnauthenticatedError."""
        claims = self._decoded(token)
        audience, client = claims.get("aud"), self.options.client_id
        among = audience if isinstance(audience, list) else [audience]
        now = time.time()
        wrong = next(
            (
                what
                for what, is_wrong in (
                    ("issuer", claims.get("iss") != self.options.issuer),
                    ("audience", client not in among),
                    ("party", claims.get("azp", client if len(among) == 1 else None) != client),
                    ("end", not _number(claims.get("exp")) or claims["exp"] <= now - LEEWAY),
                    (
                        "beginning",
                        not _number(claims.get("iat")) or max(claims["iat"], claims.get("nbf", 0)) > now + LEEWAY,
                    ),
                    ("nonce", not hmac.compare_digest(str(claims.get("nonce")).encode(), nonce.encode())),
                )
                if is_wrong
            ),
            None,
        )
        if wrong is not None:
            raise UnauthenticatedError(f"the ID token has another {wrong}", hint="begin again at /login")
        return claims

    def _decoded(self, token: str) -> Mapping[str, Any]:
        """By the provider's keys, which are fetched again for a signature that none of them made."""
        from joserfc import jwt
        from joserfc.errors import JoseError

        offered = self._get().about.get("id_token_signing_alg_values_supported", ["RS256"])
        allowed = [name for name in ALGORITHMS if name in offered]
        for age in (KEPT_SECONDS, LEAST_SECONDS):
            try:
                return jwt.decode(token, self._get(age).keys, algorithms=allowed).claims
            except (JoseError, ValueError) as error:
                problem = error
        raise UnauthenticatedError(
            f"the ID token does not hold: {type(problem).__name__}", hint="begin again at /login"
        ) from problem

    def _person(self, claims: Mapping[str, Any]) -> Person:
        name, claim = claims.get(self.options.name), self.options.name
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
            raise UnauthenticatedError(
                f"the ID token has no {claim} that can be a name", hint="`name` in the configuration"
            )
        if claim == "email" and claims.get("email_verified") is not True:
            raise UnauthenticatedError(
                "the provider has not verified the e-mail address", hint="or name another claim as `name`"
            )
        listed = claims.get(self.options.groups, [])
        known = tuple(each for each in self.options.scopes if isinstance(listed, list) and each in listed)
        return Person(self.options.issuer, name, tuple(each for each in known if each != EVERYBODY))

    def _ask(self, method: str, address: str, **options: Any) -> dict[str, Any]:
        """The provider's answer. Raises ProviderError."""
        import httpx2

        hint = "log in with a token meanwhile"
        try:
            answer = self._http.request(method, address, **options)
            found = answer.json() if answer.status_code == 200 else None
        except (httpx2.HTTPError, ValueError) as error:
            raise ProviderError(f"{address} does not answer: {type(error).__name__}", hint=hint) from error
        if not isinstance(found, dict):
            raise ProviderError(f"{address} answered {answer.status_code}", hint=hint)
        return found

    def _get(self, oldest: float = KEPT_SECONDS) -> _Known:
        """Not older than so many seconds."""
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        with self._lock:
            if self._known is None or self._clock() - self._known.at >= oldest:
                issuer = self.options.issuer
                about = self._ask("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
                if about.get("issuer") != issuer:
                    raise ProviderError(f"{issuer} calls itself {about.get('issuer')!r:.200}", hint="correct `issuer`")
                for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                    _expect_encrypted(str(about.get(name)))
                try:
                    published = self._ask("GET", str(about["jwks_uri"]))["keys"]
                    usable = [key for key in published if key["kty"] in KEY_TYPES and key.get("use", "sig") == "sig"]
                    keys = KeySet.import_key_set({"keys": usable})
                except (JoseError, ValueError, KeyError, TypeError) as error:
                    raise ProviderError(f"the keys of {issuer} cannot be read: {type(error).__name__}") from error
                self._known = _Known(about, keys, self._clock())
            return self._known


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _expect_encrypted(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise UsageError(
            f"{address!r:.200} is no https:// address", hint="people's logins cross no network unencrypted"
        )
