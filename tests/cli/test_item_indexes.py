"""The build of a bi-tuning, which is the index of its domain's items: made once, added to, stale, damaged, and refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from reccocktail import api
from reccocktail.engine.building import index_execution
from reccocktail.engine.building.indexing import index_file, indexes_of
from reccocktail.engine.building.stale_builds import request_what_is_stale
from reccocktail.engine.building.worker_events import WorkerEvent
from reccocktail.networks.bi_tuning import open_bi_tuning
from reccocktail.networks.item_index import ItemIndex
from reccocktail.networks.laser import load_frozen
from reccocktail.registry import Registry
from reccocktail.registry.catalog.filters import BuildFilter
from reccocktail.registry.catalog.references import BI_TUNING
from reccocktail.tasks import DomainData, History, Item, full_task, read_domain, write_domain

TITLES = ("Rose Cream", "Green Tea Toner", "Clay Mask", "Oat Soap", "Night Serum", "Sun Milk")
ITEMS = [
    *(Item(f"i{place}", title, {"brand": f"B{place % 2}"}) for place, title in enumerate(TITLES)),
    Item("bare", ""),
]
NEW = Item("i9", "Lip Balm", {"brand": "B9"})
KILLED_AFTER_ONE_PART = """
import os
from reccocktail.cli import main
from reccocktail import api
from reccocktail.engine.building import index_execution
keep = index_execution._Embedder._keep
index_execution.PART = 1
index_execution._Embedder._keep = lambda *given: (keep(*given), os._exit(9))
main()
"""
REQUEST = ("build", "request", "things", "--wait", "--json")


@dataclass
class Things:
    """`prepared` with the domain `things` and things@v1, a bi-tuning whose own index has the first four items."""

    run: Any
    data: Path

    def write(self, items: list[Item], taken: tuple[str, ...] = ("i0", "i1", "i2")) -> None:
        histories = [History(f"u{number}", taken[:number] + taken[number:]) for number in range(3)]
        write_domain(DomainData.of("things", items, histories), self.data)

    def index(self, registry: Registry, build: str | None = None) -> ItemIndex:
        row = registry.adapters.resolve("things@v1", kind=BI_TUNING)
        return ItemIndex.read(index_file(registry, row, None if build is None else registry.builds.get(build)))

    def damage(self, build: str) -> None:
        with self.run.registry() as registry:
            path = index_file(
                registry, registry.adapters.resolve("things@v1", kind=BI_TUNING), registry.builds.get(build)
            )
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-4] + b"\1\2\3\4")

    def standing(self) -> tuple[str, list[str]]:
        (entry,) = self.run("status", "things", "--json").json
        return entry["state"], [each["state"] for each in entry["indexes"]]


@pytest.fixture
def things(prepared: Any, make_bi_tuning: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> Things:
    found = Things(prepared, tmp_path / "things")
    found.write(ITEMS)
    prepared("domain", "add", "things", "--data", found.data)
    with prepared.registry() as registry:
        digest = registry.bases.get("tiny").digest
    make_bi_tuning(tmp_path / "bundle", digest, ITEMS[:4], model=tiny_base)
    prepared("adapter", "add", tmp_path / "bundle", "--base", "tiny", "--domain", "things")
    return found


def test_the_build_of_a_bi_tuning_is_an_index_to_which_only_new_items_are_added(things: Things) -> None:
    run = things.run
    assert things.standing() == ("stale", ["stale"]), "two items are not in the bundle's own index"
    told = run(*REQUEST)
    (first,) = told.json
    assert (first["kind"], first["status"], first["coefficients"]) == ("index", "succeeded", None)
    assert first["report"]["index"] == {"items": 6, "embedded": 2, "copied": 4, "untitled": 1, "from": "bundle"}
    assert "1 item" in told.err
    assert things.standing() == ("fresh", ["fresh"])
    assert run(*REQUEST).json[0]["id"] == first["id"]
    with run.registry() as registry:
        own, index = things.index(registry), things.index(registry, first["id"])
    assert index.item_ids == tuple(f"i{place}" for place in range(6))
    assert torch.equal(index.matrix[:4], own.matrix)

    things.write(ITEMS, taken=("i3", "i2", "i1"))
    assert things.standing() == ("fresh", ["fresh"]), "interactions are no part of an index"
    changed = [Item("i0", "Rose Oil", ITEMS[0].fields), *ITEMS[1:5], NEW]
    things.write(changed)
    assert things.standing() == ("stale", ["stale"])
    assert "--adapter things@v1" in run("status", columns=120).out
    run("status", "--check", "--state", "stale", code=1)
    (second,) = run("build", "request", "--stale", "--wait", "--json").json[-1:]
    assert second["report"]["index"] == {"items": 6, "embedded": 2, "copied": 4, "untitled": 0, "from": first["id"]}
    with run.registry() as registry:
        newer = things.index(registry, second["id"])
    assert newer.item_ids == ("i0", "i1", "i2", "i3", "i4", "i9")
    assert torch.equal(newer.matrix[1:5], index.matrix[1:5])
    assert not torch.allclose(newer.matrix[0], index.matrix[0], atol=1e-3)
    things.write(ITEMS)
    assert things.standing() == ("fresh", ["fresh"]), "the index of these items is there"

    shown = run("build", "show", second["id"], columns=100).out
    assert all(word in shown for word in ("things@v1", "embedded", "index"))
    assert run("build", "show", second["id"], "--json").json["lineage"]["items"]["count"] == 6
    told = run("adapter", "show", "things@v1", columns=80).out + run("build", "show", second["id"], columns=80).out
    assert "rank  " not in told
    assert not [line for line in told.splitlines() if "sha256:" in line and len(line) > 80], "no digest is broken"
    assert not {"key", "digest"} & {line.strip() for line in told.splitlines()}, "none stands below its name"
    listed = run("build", "list", "--kind", "index", columns=80).out
    assert all(word in listed for word in ("things@v1", "embedded", "index"))
    run("build", "export", second["id"], "exported")
    assert ItemIndex.read(run.folder / "exported" / "index.safetensors").digest == newer.digest
    for words in (("build", "promote", second["id"]), ("publish", second["id"], "org/x"), ("resolve", "things", "--build", second["id"])):  # fmt: skip
        assert run(*words, "--json", code=None).json["error"]["code"] in ("wrong_kind", "usage", "conflict")


def test_a_damaged_index_is_not_built_upon_and_is_made_anew_by_force(things: Things) -> None:
    run = things.run
    (first,) = run(*REQUEST).json
    things.damage(first["id"])
    things.write([*ITEMS, NEW])
    with run.registry() as registry:  # as a worker with --watch does
        events: list[WorkerEvent] = []
        (asked,) = [build for build in request_what_is_stale(registry, events.append) if build.kind == "index"]
        assert asked.id in {event.build for event in events if event.what == "requested"}
        registry.builds.cancel(asked.id)
        assert all(build.kind != "index" for build in request_what_is_stale(registry, events.append))
        assert "build retry" in (events[-1].detail or "")
    told = run(*REQUEST)
    assert told.json[0]["report"]["index"]["from"] == "bundle"
    assert first["id"] in told.err
    things.write(ITEMS)
    (again,) = run(*REQUEST, "--force").json
    assert again["id"] != first["id"]
    with run.registry() as registry:
        assert things.index(registry, again["id"]).item_ids == tuple(f"i{place}" for place in range(6))


@pytest.mark.slow
def test_a_killed_index_goes_on_after_the_parts_that_it_had(things: Things, monkeypatch: pytest.MonkeyPatch) -> None:
    run, kept = things.run, list[str]()
    program = f"import sys; sys.argv[1:] = {REQUEST!r}\n{KILLED_AFTER_ONE_PART}"
    subprocess.run(
        [sys.executable, "-c", program], env=run.environment(), cwd=run.folder, check=False, capture_output=True
    )
    with run.registry() as registry:
        (left,) = registry.builds.list(BuildFilter(kind="index"))
        row = registry.adapters.resolve("things@v1", kind=BI_TUNING)
        assert left.status == "running"
        assert list(indexes_of(registry, row)) == [], "nothing is there before it is whole"
        registry.builds.free(left.worker or "", "it was killed")
    keep = index_execution._Embedder._keep
    monkeypatch.setattr(index_execution, "PART", 1)
    monkeypatch.setattr(index_execution._Embedder, "_keep", lambda self, path, rows: (kept.append(path.name), keep(self, path, rows)))  # fmt: skip
    (done,) = run(*REQUEST).json
    assert (done["id"], done["status"], done["attempts"]) == (left.id, "succeeded", 2)
    assert len(kept) == 1, "the first of the two items was embedded before"
    assert Path(done["path"], "index.safetensors").is_file()
    assert [path.name for path in Path(done["path"]).iterdir()] == ["index.safetensors"]


def test_what_cannot_be_indexed_is_refused_with_what_to_do(things: Things, tmp_path: Path) -> None:
    run = things.run
    run("domain", "add", "empty")
    for code, words in (
        ("not_found", ("things", "--adapter", "things@v7")),
        ("wrong_kind", ("skin-care", "--adapter", "skin-care@v1")),
        ("usage", ("skin-care", "--adapter", "things@v1")),
        ("usage", ("things", "kitchen", "--adapter", "things@v1")),
        ("usage", ("things", "--adapter", "things@v1", "--recipe", "average")),
        ("not_found", ("empty", "--adapter", "empty")),
    ):
        error = run("build", "request", *words, "--json", code=None).json["error"]
        assert error["code"] == code, words
    things.write([Item("bare", "")], taken=("bare", "bare", "bare"))
    assert run(*REQUEST, code=1).json["error"]["code"] == "data"
    assert things.standing() == ("blocked", ["blocked"])
    things.write([ITEMS[0]], taken=("i0", "i0", "i0"))
    (one,) = run(*REQUEST).json
    assert one["report"]["index"]["items"] == 1
    asked = ("recommend", "things", "--user", "u0", "--json")
    assert [item["item_id"] for item in run(*asked).json["items"]] == ["i0"]
    assert run(*asked, "--exclude-seen", code=1).json["error"]["code"] == "data"
    things.write([ITEMS[0], ITEMS[-1]], taken=("bare", "i0", "i0"))
    assert [item["item_id"] for item in run(*asked).json["history"]] == ["i0", "i0"]
    things.write([ITEMS[0], ITEMS[-1]], taken=("bare", "bare", "bare"))
    assert run(*asked, code=None).json["error"]["code"] in ("usage", "data")
    for words in (("resolve", "things", "--merged"), ("build", "export", "things", "there")):
        error = run(*words, "--json", code=1).json["error"]
        assert (error["code"], "recommend things" in error["hint"]) == ("not_found", True), words


def test_the_index_recommends_what_is_nearest_to_the_history(things: Things, tiny_base: Path, tmp_path: Path) -> None:
    run = things.run
    bundle = open_bi_tuning(tmp_path / "bundle")
    users, history = bundle.users(*load_frozen(tiny_base, "cpu", "float32")), [ITEMS[place] for place in (0, 1, 2)]
    scores = {
        item: float(score)
        for item, score in zip(bundle.index.item_ids, bundle.index.matrix @ users.encode([history])[0], strict=True)
    }
    best = sorted(scores, key=lambda item: -scores[item])
    told = run("recommend", "things", "--user", "u0", "--json")  # nothing else could be asked
    document = told.json
    assert [item["item_id"] for item in document["items"]] == best
    assert [item["score"] for item in document["items"]] == pytest.approx([scores[item] for item in best], abs=1e-5)
    assert document["items"][0]["title"] == TITLES[int(best[0][1])]
    said = {key: document[key] for key in ("user", "known_user", "fallback", "adapter", "base", "domain")}
    assert said == {
        "user": "u0", "known_user": True, "fallback": False, "adapter": "things@v1", "base": "tiny", "domain": "things"
    }  # fmt: skip
    assert [each["item_id"] for each in document["history"]] == ["i0", "i1", "i2"]
    index = document["index"]
    assert (index["build"], index["items"], index["stale"], index["new"], index["changed"]) == (None, 4, True, 2, 0)
    assert "build request things --adapter things@v1" in told.err

    (built,) = run(*REQUEST).json
    words = ("recommend", "things", "--adapter", "things@v1", "--history", "rose cream!|| Unheard Of", "-k", "2")
    titled = run(*words, "--exclude-seen", "--json")
    assert titled.json["index"] | {"digest": ""} == {"build": built["id"], "digest": "", "items": 6, "stale": False, "new": 0, "changed": 0, "gone": 0}  # fmt: skip
    assert [each["item_id"] for each in titled.json["history"]] == ["i0", None]
    assert (titled.json["known_user"], len(titled.json["items"])) == (False, 2)
    assert "stale" not in titled.err
    every = run(*words[:-1], "100", "--exclude-seen", "--json").json["items"]
    assert {item["item_id"] for item in every} == {"i1", "i2", "i3", "i4", "i5"}
    assert every[:2] == titled.json["items"]
    assert every[0]["title"] in run(*words, "--exclude-seen", columns=80).out
    with api.open_registry(run.home, device="cpu") as registry:
        found = registry.recommend("things", history=["Rose Cream", "Unheard Of"], adapter="things@v1", k=100)
    assert {item.item_id for item in found} == {f"i{place}" for place in range(6)}
    things.write([Item("i0", "Rose Oil"), *ITEMS[1:5]])
    gone = run("recommend", "things", "--user", "u0", "-k", "100", "--json").json
    assert "i5" not in {item["item_id"] for item in gone["items"]}
    assert (gone["index"]["new"], gone["index"]["changed"], gone["index"]["gone"]) == (0, 1, 1)

    things.damage(built["id"])
    for code, more in (
        ("invalid_artifact", ("--user", "u0")),
        ("not_found", ("--user", "nobody")),
        ("usage", ("--history", " || ")),
        ("usage", ("--user", "u0", "--compare")),
        ("usage", ("--user", "u0", "--retrieve", "3")),
        ("not_found", ("--user", "u0", "--adapter", "things@v9")),
        ("usage", ("--user", "u0", "--adapter", "things@v1", "--build", built["id"])),
    ):
        error = run("recommend", "things", *more, "--json", code=None).json["error"]
        assert (error["code"], bool(error["hint"])) == (code, True), more
    refused = run("recommend", "skin-care", "--user", "x", "--adapter", "skin-care@v1", "--json", code=1).json["error"]
    assert refused["code"] == "wrong_kind"


def test_a_bi_tuning_ranks_the_whole_catalogue_beside_baselines(
    things: Things, tiny_base: Path, tmp_path: Path
) -> None:
    run, data = things.run, read_domain(things.data, "things")
    command = ("evaluate", "things@v1", "tfidf", "--domain", "things", "--task", "full", "--json")
    found = run(*command).json["systems"]
    assert [(each["label"], each["mode"]) for each in found] == [("things@v1", "index"), ("tfidf", "tfidf")]
    task, (model, tokenizer) = full_task(data, "test"), load_frozen(tiny_base, "cpu", "float32")
    bundle = open_bi_tuning(tmp_path / "bundle")
    items = bundle.items(model, tokenizer).encode([[data.items[item_id]] for item_id in data.titled])
    users = bundle.users(model, tokenizer).encode([[data.items[i] for i in each.history] for each in task.examples])
    cosines = users @ items.T
    own = cosines[torch.arange(len(users)), torch.tensor(task.targets)]
    assert found[0]["ranks"] == ((cosines >= own[:, None] - 1e-6).sum(dim=1) - 1).tolist()
    assert run(*command).json["systems"] == found
    rows = run("evaluation", "list", "--split", "full-test", "--json").json
    assert found[0]["evaluation"] in {row["id"] for row in rows}
    for more in ((), ("--task", "clicks")):
        error = run("evaluate", "things@v1", "--domain", "things", *more, "--json", code=2).json["error"]
        assert (error["code"], error["hint"]) == ("usage", "--task full")
