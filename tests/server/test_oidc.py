"""Logins of people at an OpenID Connect provider, of which a real one runs on loopback."""

from __future__ import annotations

import re
import time
from html import unescape
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from joserfc.jwk import OctKey, RSAKey
from reccocktail.registry.errors import UsageError
from reccocktail.server.app import ServerOptions
from reccocktail.server.oidc import Attempt, OidcOptions, Provider
from reccocktail.server.running import Address, options_for
from reccocktail.server.sessions import ATTEMPT, COOKIE

BROWSER = httpx2.Client()
HTML = {"Accept": "text/html"}
FILE = """
issuer: {issuer}
client_id: reccocktail
client_secret_env: OIDC_SECRET
public_url: http://localhost
label: the shop
scopes: {{"*": [read], recsys: [register, "promote:*"]}}
"""


@pytest.fixture
def provider(oidc_provider, serve, monkeypatch):
    found = oidc_provider.OidcProvider()
    found.issuer = serve(found.app())
    monkeypatch.setenv("OIDC_SECRET", oidc_provider.SECRET)
    return found


@pytest.fixture
def options(provider, tmp_path):
    path = tmp_path / "oidc.yaml"
    path.write_text(FILE.format(issuer=provider.issuer))
    return OidcOptions.read(path)


@pytest.fixture
def client(stocked, options, open_client):
    return open_client(stocked, ServerOptions(login=True, oidc=options))


def _begin(client, query: str = "") -> str:
    """Where the provider sends the browser to."""
    begun = client.get(f"/login/oidc{query}")
    assert begun.status_code == 303
    return BROWSER.get(begun.headers["location"]).headers["location"]


def _log_in(client, query: str = ""):
    return client.get(_begin(client, query).removeprefix("http://localhost"), headers=HTML)


def test_somebody_logs_in_at_the_provider_and_acts_under_the_name_that_it_gives(client, stocked, provider):
    assert client.get("/", headers=HTML).headers["location"] == "/login"
    assert "Log in with the shop" in client.get("/login").text
    entered = _log_in(client)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    asked = provider.seen[0]
    assert (asked["code_challenge_method"], asked["response_type"], asked["scope"]) == (
        "S256",
        "code",
        "openid email profile",
    )
    cookies = entered.headers.get_list("set-cookie")
    assert {each.partition("=")[0] for each in cookies} == {COOKIE, ATTEMPT}
    assert all("HttpOnly" in each and "SameSite=lax" in each for each in cookies if each.startswith(COOKIE))
    page = client.get("/", headers=HTML)
    assert ">anna@shop.test" in page.text.replace(" ", "")
    change = {"json": {"tags": ["a"]}}
    url = "/api/v1/adapters/skin-care@v1"
    assert client.patch(url, **change).status_code == 403  # without what a form carries
    csrf = re.search(r'name="csrf" value="([0-9a-f]{64})"', page.text)
    assert csrf
    assert client.patch(url, **change, headers={"X-CSRF-Token": csrf[1]}).status_code == 200
    assert stocked.events.list(limit=1)[0].created_by == "anna@shop.test"
    denied = client.post("/api/v1/builds", json={"domain": "skin-care"}, headers={"X-CSRF-Token": csrf[1]})
    assert denied.status_code == 403  # no group of hers may build
    assert client.post("/logout", data={"csrf": csrf[1]}).status_code == 303
    assert client.get("/", headers=HTML).status_code == 303
    login = client.get(client.get("/builds/x?done=pinned", headers=HTML).headers["location"]).text
    found = re.search(r'href="/login/oidc([^"]*)"', login)
    assert found
    for query, after in ((unescape(found[1]), "/builds/x?done=pinned"), ("?next=//evil.example", "/")):
        assert _log_in(client, query).headers["location"] == after


def test_an_answer_that_is_not_of_this_login_or_does_not_hold_is_refused(
    client, stocked, provider, open_client, options
):
    now = int(time.time())
    other = RSAKey.generate_key(2048, {"kid": "one"})
    for wrong in (
        {"wrong": {"iss": "https://elsewhere.test"}}, {"wrong": {"aud": "another"}}, {"wrong": {"aud": ["reccocktail", "another"]}},
        {"wrong": {"azp": "another"}}, {"wrong": {"exp": now - 120}}, {"wrong": {"exp": None}}, {"wrong": {"iat": now + 600}},
        {"wrong": {"nonce": "another"}}, {"wrong": {"nonce": None}}, {"wrong": {"email": None}}, {"wrong": {"email_verified": None}},
        {"wrong": {"email": "a\nb@shop.test"}}, {"key": other}, {"header": {"alg": "none"}},
        {"header": {"alg": "HS256"}, "key": OctKey.import_key("s" * 32)},
    ):  # fmt: skip
        before = vars(provider).copy()
        vars(provider).update(wrong)
        answer = _log_in(client)
        vars(provider).update(before)
        assert answer.status_code == 401, wrong
        assert 'role="alert"' in answer.text
        assert client.get("/", headers=HTML).status_code == 303, wrong
    client = open_client(stocked, ServerOptions(login=True, oidc=options))  # which has counted no failure
    back = _begin(client).removeprefix("http://localhost")
    stolen = open_client(stocked, ServerOptions(login=True, oidc=options))
    assert stolen.get(back).status_code == 401  # in a browser that has not begun it
    assert client.get(back.replace("state=", "state=x")).status_code == 401
    assert client.get(back).status_code == 401  # what was begun has ended with the first answer
    again = _begin(client).removeprefix("http://localhost")
    assert client.get(f"{again}&iss=https://elsewhere.test").status_code == 401
    stocked.tokens.create("anna@shop.test", ["read"], lasts=None)
    assert _log_in(client).status_code == 401  # nobody takes the name of a token
    for _ in range(30):
        answer = client.get("/login/oidc/callback?code=x&state=y")
    assert answer.status_code == 429


def test_scopes_are_those_that_the_configuration_gives_now(stocked, options, open_client, provider):
    client = open_client(stocked, ServerOptions(login=True, oidc=options))
    assert _log_in(client).status_code == 303
    cookies = dict(client.cookies)

    def with_options(**changes) -> int:
        later = open_client(stocked, ServerOptions(login=True, oidc=options.model_copy(update=changes)))
        later.cookies.update(cookies)
        return later.get("/api/v1/domains").status_code

    assert with_options() == 200
    assert with_options(scopes={"recsys": ("register",)}) == 403
    assert with_options(scopes={}) == 401
    assert with_options(issuer="https://elsewhere.test") == 401
    # keys that the provider has changed meanwhile are fetched again, once a minute
    clock = [0.0]
    ours = Provider(options, clock=lambda: clock[0])
    attempt = Attempt.new()

    def person() -> str:
        answer = parse_qs(urlsplit(BROWSER.get(ours.address(attempt)).headers["location"]).query)
        return ours.person(attempt, {name: value[0] for name, value in answer.items()}).name

    assert person() == "anna@shop.test"
    provider.keys = [RSAKey.generate_key(2048, {"kid": "two", "use": "sig"})]
    clock[0] = 61.0
    assert person() == "anna@shop.test"


def test_a_configuration_is_what_it_has_to_be(stocked, options, tmp_path, monkeypatch, open_client):
    good = FILE.format(issuer="https://sso.shop.test")
    path = tmp_path / "bad.yaml"
    for before, after in (
        ("https://sso", "http://sso"), ("public_url: http://localhost", "public_url: http://registry.shop.test"), ("[read]", "[write]"),
        ("label", "secret"), ("issuer", "provider"),
    ):  # fmt: skip
        path.write_text(good.replace(before, after))
        with pytest.raises(UsageError):
            OidcOptions.read(path)
    with pytest.raises(UsageError):
        OidcOptions.read(tmp_path / "none.yaml")
    found = options_for(stocked, Address("0.0.0.0", 80), login=False, requests_per_minute=9, oidc=options)
    assert (found.login, found.oidc) == (True, options)  # people can log in, so no token has to be there
    monkeypatch.delenv("OIDC_SECRET")
    with pytest.raises(UsageError):
        open_client(stocked, ServerOptions(oidc=options))
    silent = options.model_copy(update={"issuer": "http://localhost:9", "client_secret_env": None})
    answer = open_client(stocked, ServerOptions(oidc=silent)).get("/login/oidc", headers=HTML)
    assert answer.status_code == 502
    assert open_client(stocked).get("/login/oidc").status_code == 404
