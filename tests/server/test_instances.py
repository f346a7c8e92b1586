"""Two instances on one PostgreSQL: who logs in at one is known at the other, no update is lost, and an upload goes on at either."""

from __future__ import annotations

import hashlib
import re
import runpy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from reccocktail.engine.building.planning import data_digest
from reccocktail.engine.domain_data import domain_data
from reccocktail.registry import Registry, Settings
from reccocktail.server.app import API, ServerOptions, create_app
from reccocktail.tasks import generate, write_domain

s3: Any = runpy.run_path(str(Path(__file__).parents[1] / "registry" / "s3.py"))
CLIENTS, ROUNDS = 12, 6


@pytest.fixture
def instances(postgres, base, make_adapter, serve, tmp_path: Path):
    """The addresses of two servers, and the registry that they share; skin-care@v1 to v3."""
    name = postgres.create()
    settings = Settings.load(
        home=tmp_path / "home", database_url=postgres.url(name), cwd=tmp_path, environ={"HOME": str(tmp_path)}
    )
    with Registry.create(settings) as one, Registry.open(settings) as other:
        row = one.bases.add("tiny", base, source=str(base))
        one.domains.add("skin-care")
        for seed in (2, 3, 4):
            one.adapters.add(make_adapter(base, seed, r=2), base=row, role="ingredient", domain="skin-care")
        yield [serve(create_app(each, ServerOptions(login=True))) for each in (one, other)], one
    postgres.drop(name)


def test_two_instances_lose_no_update_and_share_sessions(instances):
    addresses, registry = instances
    secret = registry.tokens.create("ci", ["read", "promote:skin-care"], lasts=None).secret
    bearer = {"Authorization": f"Bearer {secret}"}
    alias = f"{API}/domains/skin-care/aliases/shadow"
    httpx2.put(addresses[0] + alias, json={"ref": "skin-care@v1"}, headers=bearer).raise_for_status()

    def move(number: int) -> list[tuple[str, str]]:
        won = []
        with httpx2.Client(base_url=addresses[number % 2], headers=bearer, timeout=120) as client:
            for _ in range(ROUNDS):
                seen = client.get(alias)
                before = seen.json()["ref"]
                after = f"skin-care@v{int(before[-1]) % 3 + 1}"
                answer = client.put(alias, json={"ref": after}, headers={"If-Match": seen.headers["etag"]})
                assert answer.status_code in (200, 412), answer.text
                won += [(before, after)] if answer.status_code == 200 else []
        return won

    with ThreadPoolExecutor(CLIENTS) as pool:
        won = [each for moves in pool.map(move, range(CLIENTS)) for each in moves]
    told = [event.detail for event in registry.events.list(limit=1000, kind="alias.moved")]
    assert sorted((detail["from"], detail["to"]) for detail in told) == sorted(won)
    assert len(won) >= ROUNDS

    with httpx2.Client(timeout=120) as browser:
        page = browser.get(f"{addresses[0]}/login").text
        csrf = re.search(r'name="csrf" value="(\w+)"', page)
        assert csrf
        browser.post(f"{addresses[0]}/login", data={"csrf": csrf[1], "token": secret})
        assert browser.get(f"{addresses[1]}/", headers={"Accept": "text/html"}).status_code == 200


def _announced(folder: Path) -> list[dict[str, Any]]:
    return [
        {"path": each.name, "bytes": each.stat().st_size, "sha256": hashlib.sha256(each.read_bytes()).hexdigest()}
        for each in sorted(folder.iterdir())
    ]


def _expect_data_everywhere(one: Any, other: Any, registries: tuple[Registry, Registry], folder: Path) -> None:
    """Data that one instance was sent are read at the other, exported, applied again, and kept from a collection until others replace them."""
    first, second = registries
    for users in (30, 40):
        shop = generate("skin-care", users=users)
        write_domain(shop, folder / str(users))
        files = _announced(folder / str(users))
        upload = one.post(f"{API}/uploads", json={"files": files}).json()["id"]
        for file in files:
            sent = one.put(
                f"{API}/uploads/{upload}/files/{file['path']}",
                content=(folder / str(users) / file["path"]).read_bytes(),
            )
            assert sent.status_code == 200
        made = one.post(f"{API}/domains", json={"name": "skin-care", "upload": upload}).json()
        assert other.get(f"{API}/domains/skin-care/facts").json()["users"] == users
        assert domain_data(second, "skin-care").digest == shop.digest == data_digest(second, made["data"])
        first.collect(grace=timedelta(0))
        assert first.missing() == []
        assert second.store.has(made["data"])
    (tree,) = [each for each in first.digests() if each == made["data"]]
    text = other.get(f"{API}/export").content
    found = other.post(f"{API}/apply", content=text, headers={"Content-Type": "application/json"}).json()
    assert (found["counts"].get("failed", 0), found["counts"].get("changed", 0)) == (0, 0)
    assert one.get(f"{API}/domains/skin-care").json()["data"] == tree


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with s3["serve"](monkeypatch) as client:
        yield client


def test_an_upload_that_one_instance_began_is_continued_and_registered_by_another(
    bucket, postgres, base, make_adapter, open_client, tmp_path
):
    name = postgres.create()
    about = {"database_url": postgres.url(name), "store_url": "s3://shop/all", "cwd": tmp_path}
    of_one, of_other = (
        Settings.load(home=tmp_path / home, environ={"HOME": str(tmp_path)}, **about) for home in ("one", "other")
    )
    folder = make_adapter(base, 3, r=2)
    with Registry.create(of_one) as first, Registry.open(of_other) as second:
        first.bases.add("tiny", base, source=str(base))
        first.domains.add("skin-care")
        one, other = open_client(first), open_client(second)
        files = _announced(folder)
        upload = one.post(f"{API}/uploads", json={"files": files}).json()["id"]
        for number, file in enumerate(files):
            data, here = (folder / file["path"]).read_bytes(), f"{API}/uploads/{upload}/files/{file['path']}"
            half = len(data) // 2
            for client, offset, piece in ((one, 0, data[:half]), (other, half, data[half:])):
                state = client.put(f"{here}?offset={offset}", content=piece).json()
                assert state["files"][number]["received"] == offset + len(piece)
        assert one.get(f"{API}/uploads/{upload}").json() == state
        assert state["complete"]
        new = {"base": "tiny", "domain": "skin-care", "upload": upload}
        assert other.post(f"{API}/adapters", json=new).json()["ref"] == "skin-care@v1"
        assert not any("/uploads/" in key for key in s3["keys"](bucket))
        _expect_data_everywhere(one, other, (first, second), tmp_path)
        old = one.post(f"{API}/uploads", json={"files": files}).json()["id"]
        assert other.delete(f"{API}/uploads/{old}").status_code == 204
        assert one.get(f"{API}/uploads/{old}").status_code == 404
    postgres.drop(name)
