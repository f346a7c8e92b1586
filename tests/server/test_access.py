"""Who may ask the server: tokens, sessions of people, forms against requests from elsewhere, and limits."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from reccocktail.registry.errors import UsageError
from reccocktail.server.app import ServerOptions
from reccocktail.server.errors import TooManyRequestsError
from reccocktail.server.identity import Identity
from reccocktail.server.limits import RateLimit
from reccocktail.server.pages.ways import own_path
from reccocktail.server.running import Address, options_for
from reccocktail.server.security import BODY_LIMIT
from reccocktail.server.sessions import COOKIE, Sessions, session_key

CLOSED = ServerOptions(login=True)
HTML = {"Accept": "text/html"}


def _csrf(page: str) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
    assert found
    return found[1]


def test_a_server_that_wants_tokens_answers_nobody_without(stocked, open_client):
    secret = stocked.tokens.create("ci", ["read"], lasts=None).secret
    client = open_client(stocked, CLOSED)
    for headers in ({}, {"Authorization": f"Basic {secret}"}, {"Authorization": f"Bearer {secret}x"}):
        answer = client.get("/metrics", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    good = {"Authorization": f"Bearer {secret}"}
    assert client.get("/metrics", headers=good).status_code == 200
    assert client.get("/healthz").status_code == client.get("/static/style.css").status_code == 200
    stocked.tokens.revoke("ci")
    assert client.get("/metrics", headers=good).status_code == 401
    answer = client.get("/", headers=HTML)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    # a token that is given counts on this machine too, and is not passed over
    assert open_client(stocked).get("/metrics", headers=good).status_code == 401


def test_somebody_with_a_token_logs_in_and_out(stocked, open_client):
    made = stocked.tokens.create("anna", ["read"], lasts=timedelta(days=1))
    client = open_client(stocked, CLOSED)
    form = {"csrf": _csrf(client.get("/login").text)}
    assert client.post("/login", data={"token": made.secret}).status_code == 403
    assert client.post("/login", data={"token": made.secret, "csrf": "0" * 64}).status_code == 403
    refused = client.post("/login", data=form | {"token": "rct_guess"})
    assert refused.status_code == 401
    assert 'role="alert"' in refused.text
    entered = client.post("/login", data=form | {"token": made.secret})
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert made.secret not in cookie
    page = client.get("/", headers=HTML)
    assert page.status_code == 200
    assert ">anna" in page.text.replace(" ", "")
    assert client.post("/logout", data={"csrf": form["csrf"]}).status_code == 403  # of the session before
    assert client.post("/logout", data={"csrf": _csrf(page.text)}).status_code == 303
    assert client.get("/", headers=HTML).status_code == 303
    client.post("/login", data={"csrf": _csrf(client.get("/login").text), "token": made.secret})
    assert client.get("/", headers=HTML).status_code == 200
    for refused in (client.get("/nothing", headers=HTML), client.post("/logout", headers=HTML)):
        assert refused.status_code in (403, 404)
        assert 'aria-label="Pages"' in refused.text  # whatever was refused, the way goes on
    stocked.tokens.revoke("anna")
    assert client.get("/", headers=HTML).status_code == 303
    assert 'aria-label="Pages"' not in client.get("/nothing", headers=HTML).text


def test_a_login_leads_to_the_page_that_was_asked_for_and_nowhere_else(stocked, open_client):
    made = stocked.tokens.create("anna", ["read"], lasts=None)
    client = open_client(stocked, CLOSED)
    wanted = "/domains/skin-care?at=2026-01-02&after=tiny:skin-care@v1"
    asked = client.get(wanted, headers=HTML)
    assert (asked.status_code, urlsplit(asked.headers["location"]).path) == (303, "/login")
    page = client.get(asked.headers["location"]).text
    assert f'name="next" value="{wanted.replace("&", "&amp;")}"' in page
    form = {"csrf": _csrf(page), "next": wanted}
    refused = client.post("/login", data=form | {"token": "rct_guess"})
    assert (refused.status_code, 'name="next" value="/domains/skin-care?' in refused.text) == (401, True)
    assert client.post("/login", data=form | {"token": made.secret}).headers["location"] == wanted
    # a form whose session has ended leads back to its page
    for before, after in (
        ("http://localhost/recipes/default", "/recipes/default"),
        ("http://evil.example/recipes", None),
    ):
        client.cookies.clear()
        found = client.post("/recipes", data={"csrf": "x"}, headers=HTML | {"Referer": before})
        assert found.status_code == 403, before
        assert (f'href="{after}"' in found.text) is (after is not None), before
    for elsewhere in (
        "//evil.example", "/\\evil.example", "\\evil.example", "https://evil.example/", "javascript:alert(1)", "/\t/evil.example",
        "/\n/evil.example", "evil.example", "", "/ü", "/a b", "/login?next=/", "/login", "/logout", "/api/v1/export", "/" + "x" * 2000,
    ):  # fmt: skip
        client.cookies.clear()
        page = client.get("/login", params={"next": elsewhere}).text
        assert 'name="next"' not in page, elsewhere
        form = {"csrf": _csrf(page), "token": made.secret, "next": elsewhere}
        assert client.post("/login", data=form).headers["location"] == "/", elsewhere
    assert own_path("/loginx?a=%2F%2Fevil") == "/loginx?a=%2F%2Fevil"


def test_a_session_is_signed_and_its_scripts_say_so(stocked, open_client):
    made = stocked.tokens.create("anna", ["admin"], lasts=None)
    client = open_client(stocked, CLOSED)
    client.post("/login", data={"csrf": _csrf(client.get("/login").text), "token": made.secret})
    good = client.cookies[COOKIE]
    client.cookies.set(COOKIE, f"{good[:-2]}xx", domain="localhost.local")
    for value in (good[:-2] + "xx", Sessions("another key").csrf, "", "x" * 9000):
        client.cookies.clear()
        assert client.get("/metrics", headers={"Cookie": f"{COOKIE}={value}"}).status_code == 401
    assert client.get("/metrics", headers={"Cookie": f"{COOKIE}={good}"}).status_code == 200
    assert session_key(stocked.settings) == session_key(stocked.settings)
    assert (stocked.settings.home / "server.key").stat().st_mode & 0o777 == 0o600


def test_scopes_mean_what_they_say():
    some = Identity("ci", frozenset({"read", "promote:beauty"}))
    assert [some.may(s) for s in ("read", "promote", "promote:beauty", "promote:toys", "build", "admin")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert Identity("x", frozenset({"promote:*"})).may("promote:toys")
    assert not Identity("x", frozenset({"read"})).may("promote")
    assert all(Identity("x", frozenset({"admin"})).may(s) for s in ("read", "promote:toys", "publish"))


def test_only_this_machine_is_served_without_a_token(stocked, monkeypatch):
    def options(host, *names, login=False):
        return options_for(stocked, Address(host, 1, names), login=login, requests_per_minute=10)

    for host in ("0.0.0.0", "::", "192.0.2.1", "registry.example.org"):
        with pytest.raises(UsageError):
            options(host)
    with pytest.raises(UsageError):
        options("127.0.0.1", login=True)
    assert not options("127.0.0.1").login
    assert not options("::1").login
    stocked.tokens.create("ci", ["read"], lasts=None)
    assert options("0.0.0.0").login
    assert options("0.0.0.0").hosts == ()
    assert "a.example" in options("0.0.0.0", "a.example").hosts
    # an instance whose home is new has nothing there yet
    assert session_key(replace(stocked.settings, home=stocked.settings.home / "new"))
    monkeypatch.setenv("RECCOCKTAIL_SESSION_KEY", "short")
    with pytest.raises(UsageError):
        session_key(stocked.settings)


def test_a_caller_asks_so_often_and_no_more(stocked, open_client):
    moment = [0.0]
    limit = RateLimit(60, clock=lambda: moment[0])
    for _ in range(60):
        limit.take("a")
    limit.take("b")
    with pytest.raises(TooManyRequestsError):
        limit.take("a")
    moment[0] += 1.5
    limit.take("a")
    with pytest.raises(TooManyRequestsError):
        limit.take("a")
    secret = stocked.tokens.create("ci", ["read"], lasts=None).secret
    client = open_client(stocked, ServerOptions(login=True, requests_per_minute=3), Authorization=f"Bearer {secret}")
    found = [client.get("/metrics").status_code for _ in range(4)]
    assert found == [200, 200, 200, 429]
    guessing = open_client(stocked, CLOSED, Authorization="Bearer rct_guess")
    found = [guessing.get("/metrics") for _ in range(25)]
    assert (found[0].status_code, found[-1].status_code) == (401, 429)
    assert "Retry-After" in found[-1].headers
    assert guessing.get("/metrics", headers={"Authorization": f"Bearer {secret}"}).status_code == 200


def test_a_body_that_is_too_long_ends_early(client):
    csrf = {"csrf": _csrf(client.get("/login").text)}
    assert client.post("/login", data=csrf | {"token": "x" * BODY_LIMIT}).status_code == 413
    pieces = (b"x" * 2**20 for _ in range(6))
    answer = client.post("/login", content=pieces, headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_a_text_that_no_database_keeps_is_the_callers_mistake(client):
    for path in ("/healthz?x=%00", "/api/v1/domains/a%00b"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "usage")
    answer = client.post("/api/v1/domains", json={"name": "garden", "title": "a\0b"})
    assert answer.status_code == 400
