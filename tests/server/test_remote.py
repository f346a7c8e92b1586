"""The Python client over HTTP: the same façade, and the same records and errors as beside the registry."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
from httpx2 import Client, ConnectError, MockTransport, ReadError, Response
from reccocktail import api
from reccocktail.api import connection, outages
from reccocktail.registry.errors import (
    ConflictError,
    InvalidArtifactError,
    NotFoundError,
    RecCocktailError,
    UnreachableError,
    UsageError,
    WrongKindError,
)
from reccocktail.server.app import ServerOptions, create_app
from starlette.responses import PlainTextResponse, RedirectResponse


@pytest.fixture
def remote(stocked, serve, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    secret = stocked.tokens.create("ci", ["read", "register", "build", "promote:*", "publish"], lasts=None).secret
    with api.open_registry(serve(create_app(stocked, ServerOptions(login=True))), token=secret) as client:
        yield client


def test_the_facade_is_the_same_over_http(remote, stocked, make_adapter, loopback_hub):
    folder = make_adapter(stocked.bases.folder(stocked.bases.get("tiny")), 3, r=2)
    added = remote.register_adapter(
        folder, base="tiny", domain="skin-care", metrics={"HR@1": 0.5}, tags=["a"], note="n"
    )
    local = stocked.adapters.resolve("skin-care@v2")
    assert added == replace(local, created=True)
    assert (added.created_by, added.tags, added.metrics) == ("ci", ("a",), {"HR@1": 0.5})
    remote.set_alias("skin-care@v2", "champion")
    assert remote.resolve("skin-care@champion", base="tiny").ref == "skin-care@v2"
    fetched = remote.adapter_folder(added)
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == {
        path.name: path.read_bytes() for path in stocked.adapters.folder(local).iterdir()
    }
    assert remote.adapter_folder(added) == fetched
    assert remote.add_domain("garden", title="Garden") == "garden"
    build = remote.request_build("skin-care", recipe="average")
    assert build == stocked.builds.get(build.id)
    assert remote.request_build("skin-care", recipe="average").id == build.id
    stocked.builds.claim("w", build_id=build.id)
    stocked.builds.succeed(build.id, "w", stocked.bases.get("tiny").digest, {"spirit": 0.5}, {})
    done = remote.wait(build)
    assert (done.status, done.coefficients) == ("succeeded", {"spirit": 0.5})
    assert (remote.build_folder(done) / "model.safetensors").is_file()
    published = remote.publish("skin-care@v2", "acme/skin-care")
    kept = stocked.publications.list()[0]
    assert (published.id, published.revision, published.base) == (kept.id, kept.revision, kept.base)
    withdrawn = remote._server.withdraw("acme/skin-care", make_private=True)
    assert (withdrawn["made_private"], [each["id"] for each in withdrawn["withdrawn"]]) == (True, [kept.id])
    assert stocked.publications.get("acme/skin-care").withdrawn_at is not None


def test_errors_are_those_of_the_registry(remote, stocked, tmp_path):
    for error, ask in (
        (NotFoundError, lambda: remote.resolve("nowhere")),
        (WrongKindError, lambda: remote.resolve("skin-care", kind="bi-tuning")),
        (UsageError, lambda: remote.evaluate("skin-care", ["spirit"])),
        (UsageError, lambda: remote.recommend("skin-care")),
        (InvalidArtifactError, lambda: remote.register_adapter(tmp_path / "none", base="tiny")),
        (ConflictError, lambda: remote.build_folder(remote.request_build("skin-care", recipe="average"))),
    ):
        with pytest.raises(error):
            ask()
    assert remote.add_domain("garden", data=stocked.settings.home.parent / "data", recipe="average") == "garden"
    kept = stocked.domains.get("garden")
    assert stocked.store.has(str(kept.data))
    assert remote.add_base("again", stocked.bases.folder(stocked.bases.get("tiny"))) == "again"
    assert stocked.bases.get("again").digest == stocked.bases.get("tiny").digest
    build = remote.request_build("skin-care", recipe="average")
    stocked.builds.cancel(build.id)
    with pytest.raises(ConflictError):
        remote.wait(build)


def test_a_file_that_is_cut_off_is_fetched_on_from_where_it_was(remote, stocked, monkeypatch):
    whole, asked = connection.Connection._from, []

    def cut(self, address, params, there):
        asked.append(there)
        for piece in whole(self, address, params, there):
            yield piece
            if len(asked) < 3:
                raise ReadError("the line was cut")

    monkeypatch.setattr(connection, "PIECE", 1000)
    monkeypatch.setattr(connection, "MOST_WAIT", 0.0)
    monkeypatch.setattr(connection.Connection, "_from", cut)
    row = stocked.adapters.resolve("skin-care@v1")
    fetched = remote.adapter_folder(row)
    assert asked[0] == 0 < asked[1]
    for path in stocked.adapters.folder(row).iterdir():
        assert (fetched / path.name).read_bytes() == path.read_bytes()


def test_a_token_goes_to_its_server_alone(serve, monkeypatch):
    seen = []

    async def elsewhere(scope, receive, send):
        seen.append(scope["path"])
        await PlainTextResponse("thanks")(scope, receive, send)

    other = serve(elsewhere)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, other)
    client = api.open_registry(serve(RedirectResponse(f"{other}/stolen")), token="rct_x")
    with client, pytest.raises(RecCocktailError, match="307"):
        client.resolve("skin-care")
    assert seen == []


@pytest.fixture
def patience(monkeypatch):
    """Nothing sleeps, and a server that never answered, or did, is asked once; one that has a build that is waited for as long as ever."""
    monkeypatch.setattr(outages, "MOST_WAIT", 0.0)
    monkeypatch.setattr(connection, "FIRST", -1.0)
    monkeypatch.setattr(connection, "BRIEF", -1.0)


def away(requests, times, *, error=ConnectError):
    """A server behind a proxy that is away for some requests, and then has something else each time."""
    seen = []

    def answer(request):
        requests.append(f"{request.method} {request.url.path}")
        seen.append(request)
        if len(seen) in times and error is None:
            return Response(502, text="Bad Gateway")
        if len(seen) in times:
            raise error("the line was cut")
        if request.url.path.endswith("/follow"):
            return Response(200, text=f"id: {len(seen)}\ndata: {len(seen)}\n\n")
        return Response(200, json=len(seen))

    return MockTransport(answer)


@pytest.mark.parametrize("error", [ConnectError, ReadError, None])
def test_a_server_that_restarts_is_asked_again_while_a_build_is_waited_for_and_said_to_be_away_once(
    patience, monkeypatch, error
):
    monkeypatch.setattr(connection.time, "sleep", lambda seconds: None)
    said, requests = [], []
    server = connection.Connection("http://localhost:1/api/v1/", say=said.append)
    assert server._http.base_url == "http://localhost:1/api/v1/"
    server._http = Client(
        transport=away(requests, {2, *range(4, 9), 10, 11, 12}, error=error), base_url="http://x/api/v1"
    )
    assert server.get("/builds/1") == 1
    with pytest.raises(UnreachableError, match="localhost:1"):
        server.get("/builds/1")
    assert server.get("/builds/1") == 3
    with server.patient():
        assert server.get("/builds/1") == 9
    events = server.events("/events/follow", 0)
    assert [next(events), next(events)] == [13, 14]
    assert [line.split()[:3] for line in said] == [["localhost:1", "is", word] for word in ("away:", "back") * 2]
    del requests[:]
    server._http = Client(transport=away(requests, {1}, error=error), base_url="http://x/api/v1")
    with server.patient():
        if error is ConnectError:  # nothing was sent
            assert server.ask("POST", "/builds") == 2
        else:
            with pytest.raises(UnreachableError) as caught:
                server.ask("POST", "/builds")
            assert len(requests) == 1
            assert "may have done" in str(caught.value.hint)


def nameless(*_, **__):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_why_a_server_cannot_be_reached_is_said_in_plain_words(patience, serve, monkeypatch):
    def refused(url, **options):
        with api.open_registry(url, **options) as client, pytest.raises(RecCocktailError) as caught:
            client.resolve("skin-care")
        return caught.value.code, str(caught.value), str(caught.value.hint)

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{bound.getsockname()[1]}"
        code, message, hint = refused(f"http://{place}")
    assert (code, place in message, "connection refused" in message) == ("unreachable", True, True)
    assert "reccocktail server" in hint
    plain = serve(PlainTextResponse("thanks"))
    code, message, hint = refused(plain.replace("http", "https"))
    assert (code, "plain http" in message, "http://" in hint) == ("unreachable", True, True)
    with monkeypatch.context() as unnamed:
        unnamed.setattr(socket, "getaddrinfo", nameless)
        code, message, _ = refused("http://nowhere.invalid")
    assert (code, "nowhere.invalid:80" in message, "name" in message) == ("unreachable", True, True)
    assert refused(plain)[0] == "error"


def test_an_address_and_a_token_are_what_they_have_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for options in ({"home": "http://registry.example.org"}, {"home": "https://eve:pw@host"}, {"home": str(tmp_path)}):
        with pytest.raises(UsageError):
            api.open_registry(**options, token="rct_x")
    with pytest.raises(UsageError):
        api.open_registry("https://host", create=True)
    examples = {
        "registry.example.org": "https://registry.example.org",
        "localhost:8321": "http://localhost:8321",
        "127.0.0.1:8321/api/v1": "http://127.0.0.1:8321/api/v1",
        "ftp://host": "https://host",
        "https://host:port": "http://127.0.0.1:8321",
        "http://127.0.0.1:99999": "http://127.0.0.1:8321",
        "http://127.0.0.1:0": "http://127.0.0.1:8321",
        "https://[::1": "http://127.0.0.1:8321",
    }
    for url, example in examples.items():
        monkeypatch.setenv("RECCOCKTAIL_URL", url)
        with pytest.raises(UsageError) as caught:
            api.open_registry()
        assert example in str(caught.value.hint), url
        assert ("port" in str(caught.value)) == (url.startswith("http") and "[" not in url), url
    for text in ("https://eve:secret@host", "https://host?token=secret", "https://host/#secret"):
        monkeypatch.setenv("RECCOCKTAIL_URL", text)
        with pytest.raises(UsageError) as caught:
            api.open_registry()
        assert "secret" not in f"{caught.value} {caught.value.hint}"
