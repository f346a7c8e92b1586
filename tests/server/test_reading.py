"""What the API shows: the documents that the command prints with `--json`, by pages, in ranges, and as they happen."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from typing import Any

import httpx2
import pytest
from reccocktail.registry import Registry
from reccocktail.server.app import API, create_app


@pytest.fixture
def get(client):
    def ask(path: str, status: int = 200, **params: Any) -> Any:
        answer = client.get(API + path, params=params)
        assert answer.status_code == status, answer.text
        return answer.json()

    return ask


def _succeed(registry: Registry, domain: str = "skin-care") -> Any:
    """A build of that domain whose result is its base model."""
    base = registry.bases.get("tiny")
    inputs = {
        "base": {"name": "tiny", "digest": base.digest},
        "adapters": [
            {"role": role, "ref": row.ref, "digest": row.digest}
            for role, row in (
                ("spirit", registry.adapters.resolve("spirit")),
                ("ingredient", registry.adapters.resolve(domain)),
            )
        ],
    }
    asked = registry.builds.request(domain, "tiny", "key", {"output": {}}, inputs, own_recipe=True).build
    registry.builds.claim("w", build_id=asked.id)
    registry.builds.log(asked.id, "w", "halfway")
    return registry.builds.succeed(asked.id, "w", base.digest, {"spirit": 0.5, "ingredient": 0.5}, {})


def test_lists_and_objects_are_the_documents_of_the_command(get, stocked):
    build = _succeed(stocked)
    stocked.adapters.alias("skin-care@v1", "champion")
    assert get("/bases") == [row.to_json() for row in stocked.bases.list()]
    assert get("/bases/tiny") == stocked.bases.get("tiny").to_json()
    assert get("/domains/skin-care") == get("/domains")[0] == stocked.domains.get("skin-care").to_json()
    assert get("/domains/skin-care/gate") is None
    listed = get("/adapters", spirit=True)
    assert [each["ref"] for each in listed["items"]] == ["spirit@v1"]
    assert listed["next"] is None
    one = get("/adapters/skin-care@champion")
    assert one["aliases"] == ["champion"]
    assert one["build_count"] == 1
    assert one["created_at"].endswith("+00:00")
    assert get("/builds")["items"][0] == stocked.builds.get(build.id).to_json()
    shown = get(f"/builds/{build.id}")
    assert [each["ref"] for each in shown["lineage"]["adapters"]] == ["spirit@v1", "skin-care@v1"]
    assert get(f"/builds/{build.id}/logs")[0]["text"] == "halfway"
    assert {each["name"] for each in get("/recipes")} >= {"average", "default"}
    assert get("/recipes/average")["method"] == "linear"
    assert get("/status")[0]["domain"] == "skin-care"
    assert get("/status", state="blocked") == []
    assert get("/domains/skin-care/served")[0]["build"] == build.id
    assert get("/domains/skin-care/history")["items"][0]["build"] == build.id
    assert get("/export")["domains"].keys() == {"skin-care"}
    assert get("/publications") == {"items": [], "next": None} == get("/evaluations")


def test_names_mean_what_they_meant_at_a_moment(get, stocked):
    build = _succeed(stocked)
    now = get("/resolve/skin-care")
    assert now == {
        "ref": "skin-care", "kind": "adapter", "adapter": "skin-care@v1", "build": None, "base": "tiny",
        "digest": stocked.adapters.resolve("skin-care").digest,
    }  # fmt: skip
    assert get("/resolve/skin-care", merged=True)["build"] == build.id
    assert get("/resolve/skin-care@production", merged=True)["build"] == build.id
    made = stocked.adapters.resolve("skin-care").created_at.isoformat()
    assert get("/resolve/skin-care", at=made)["adapter"] == "skin-care@v1"
    assert get("/adapters/skin-care", at=made)["at"]
    assert get("/resolve/skin-care", at="2020-01-01", status=404)["error"]["code"] == "not_found"
    assert get("/status", at="2020-01-01") == []
    for path, params in (
        ("/resolve/skin-care", {"at": "yesterday"}),
        ("/adapters/a@b@c", {}),
        ("/events", {"after": "x"}),
    ):
        assert get(path, status=400, **params)["error"]["code"] in ("usage", "invalid_reference")


def test_a_list_is_read_page_by_page(get, stocked):
    for number in range(5):
        stocked.domains.add(f"shop-{number}")
    every = [event.id for event in stocked.events.list(limit=1000)]
    found, after = [], None
    while True:
        page = get("/events", limit=2, **({"after": after} if after else {}))
        found += [each["id"] for each in page["items"]]
        if (after := page["next"]) is None:
            break
    assert found == every
    assert get("/adapters", limit=1)["next"] == "tiny:skin-care@v1"
    assert [each["ref"] for each in get("/adapters", limit=1, after="tiny:skin-care@v1")["items"]] == ["spirit@v1"]
    for limit in (0, 1001, "many"):
        assert get("/events", limit=limit, status=422)["error"]["code"] == "usage"


def test_files_are_sent_whole_and_in_ranges(get, client, stocked):
    build = _succeed(stocked)
    listed = get("/adapters/skin-care/files")
    name = "adapter_model.safetensors"
    entry = next(each for each in listed["files"] if each["path"] == name)
    whole = (stocked.adapters.folder(stocked.adapters.resolve("skin-care")) / name).read_bytes()
    url = f"{API}/adapters/skin-care/files/{name}"
    answer = client.get(url)
    assert answer.content == whole
    assert answer.headers["etag"] == f'"{entry["sha256"]}"'
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    part = client.get(url, headers={"Range": "bytes=8-15", "If-Range": answer.headers["etag"]})
    assert (part.status_code, part.content) == (206, whole[8:16])
    assert client.get(url, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert client.get(url, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416
    assert {each["path"] for each in get(f"/builds/{build.id}/files")["files"]} >= {"model.safetensors", "config.json"}
    for path in ("../registry.sqlite", "..%2f..%2fregistry.sqlite", "nothing", "/etc/passwd"):
        assert client.get(f"{API}/adapters/skin-care/files/{path}").status_code == 404


def test_all_files_are_sent_as_an_archive(client, stocked):
    answer = client.get(f"{API}/adapters/skin-care@v1/archive")
    assert answer.headers["content-disposition"] == 'attachment; filename="skin-care-v1.tar"'
    assert len(answer.content) == int(answer.headers["content-length"])
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        sent = {name: extracted.read() for name in archive.getnames() if (extracted := archive.extractfile(name))}
    folder = stocked.adapters.folder(stocked.adapters.resolve("skin-care@v1"))
    assert sent == {f"skin-care-v1/{path.name}": path.read_bytes() for path in folder.iterdir()}
    assert client.get(f"{API}/adapters/skin-care@v1/archive").content == answer.content
    build = stocked.builds.request("skin-care", "tiny", "k", {"output": {}}, {"adapters": []}).build
    assert client.get(f"{API}/builds/{build.id}/archive").status_code == 409


def test_a_build_is_followed_to_its_end(client, stocked):
    build = _succeed(stocked)
    answer = client.get(f"{API}/builds/{build.id}/follow")
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = [block.splitlines() for block in answer.text.strip().split("\n\n")]
    assert [lines[0] for lines in told[2:]] == ["event: progress", "event: end"]
    assert told[1][1] == "event: line"
    line = told[1][0].removeprefix("id: ")
    again = client.get(f"{API}/builds/{build.id}/follow", headers={"Last-Event-ID": line})
    assert "event: line" not in again.text
    assert json.loads(told[-1][1].removeprefix("data: "))["status"] == "succeeded"


def test_events_are_told_as_they_happen(stocked, serve):
    address = serve(create_app(stocked))
    known = stocked.events.list(limit=1)[0].id
    stocked.domains.add("garden")
    threading.Timer(0.2, lambda: stocked.domains.add("kitchen")).start()
    told: list[str] = []
    with httpx2.stream(
        "GET", f"{address}{API}/events/follow", headers={"Last-Event-ID": str(known)}, timeout=60
    ) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                told.append(json.loads(line.removeprefix("data: "))["subject"])
            if len(told) == 2:
                break
    assert told == ["garden", "kitchen"]
