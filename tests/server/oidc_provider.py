"""An OpenID Connect provider on loopback: one person, codes that are good once, PKCE, and whatever a test makes wrong."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import FastAPI, Form, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT, SECRET = "reccocktail", "client-secret"


@dataclass
class OidcProvider:
    """`claims` are of the person, `wrong` replaces claims of the ID token, `header` its header, `key` its signing key; `about` the document."""

    claims: dict[str, Any] = field(
        default_factory=lambda: {"email": "anna@shop.test", "email_verified": True, "groups": ["recsys", "others"]}
    )
    wrong: dict[str, Any] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=lambda: {"alg": "RS256"})
    about: dict[str, Any] = field(default_factory=dict)
    issuer: str = ""
    keys: list[RSAKey] = field(default_factory=lambda: [RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})])
    key: Any = None
    asked: dict[str, dict[str, str]] = field(default_factory=dict)
    seen: list[dict[str, str]] = field(default_factory=list)

    def app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)

        @app.get("/.well-known/openid-configuration")
        def describe() -> dict[str, Any]:
            places = {
                f"{name}_endpoint": f"{self.issuer}/{path}"
                for name, path in (("authorization", "authorize"), ("token", "token"))
            }
            known = {
                "issuer": self.issuer,
                "jwks_uri": f"{self.issuer}/keys",
                "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
            }
            return places | known | self.about

        @app.get("/keys")
        def publish() -> dict[str, Any]:
            return {"keys": [key.as_dict(private=False) for key in self.keys]}

        @app.get("/authorize")
        def authorize(request: Request) -> Response:
            code = secrets.token_hex(8)
            self.asked[code] = asked = dict(request.query_params)
            self.seen.append(asked)
            return RedirectResponse(
                f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}", 303
            )

        @app.post("/token")
        def give(
            request: Request,
            code: Annotated[str, Form()],
            code_verifier: Annotated[str, Form()],
            redirect_uri: Annotated[str, Form()],
        ) -> Response:
            asked = self.asked.pop(code, None)
            digest = base64.urlsafe_b64encode(hashlib.sha256(code_verifier.encode()).digest()).rstrip(b"=").decode()
            auth = "Basic " + base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
            if (
                asked is None
                or asked["code_challenge"] != digest
                or asked["redirect_uri"] != redirect_uri
                or request.headers.get("authorization") != auth
            ):
                return JSONResponse({"error": "invalid_grant"}, 400)
            return JSONResponse({"access_token": "x", "token_type": "Bearer", "id_token": self._token(asked["nonce"])})

        return app

    def _token(self, nonce: str) -> str:
        now = int(time.time())
        claims = {"iss": self.issuer, "sub": "7", "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": nonce}
        found = {name: value for name, value in (claims | self.claims | self.wrong).items() if value is not None}
        if self.header["alg"] == "none":
            return jwt.encode({"alg": "none"}, found, RSAKey.generate_key(2048), algorithms=["none"])
        return jwt.encode(self.header, found, self.key or self.keys[-1], algorithms=[self.header["alg"]])
