"""A registry as one file: what is refused whole, what is applied object by object, and what `export` gives back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from reccocktail.engine.declared_versions import keep_version
from reccocktail.engine.gates import move_champion
from reccocktail.engine.recipe_book import foreseen_recipe, settle_recipe
from reccocktail.registry import Registry, Settings
from reccocktail.registry.artifacts.sources import find_adapter_source
from reccocktail.registry.catalog.adapters import Adapters
from reccocktail.registry.catalog.annotations import Edit
from reccocktail.registry.declared.applying import Ways
from reccocktail.registry.declared.applying import apply as apply_document
from reccocktail.registry.declared.document import parse_document
from reccocktail.registry.declared.exporting import export, to_json, to_yaml
from reccocktail.registry.declared.outcomes import Outcome
from reccocktail.registry.errors import UsageError
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class Found:
    folder: Path
    source: str
    revision: str | None = None


@contextmanager
def _fetch_base(source: str, revision: str | None) -> Iterator[Found]:
    yield Found(Path(source), source, revision)


def _fetch_adapter(source: str, revision: str | None) -> Any:
    return find_adapter_source(source, revision=revision)


def _check_domain(name: str, fields: Any) -> None:
    if fields.get("trainer") == "nonsense":
        raise UsageError("there is no such trainer")


def _settle(registry: Registry, recipe: str, dry_run: bool) -> str:
    return (foreseen_recipe if dry_run else settle_recipe)(registry, recipe)


def _move(registry: Registry, ref: str, alias: str, base: str) -> None:
    move_champion(registry, ref, alias, base=base)


WAYS = Ways(_fetch_base, _fetch_adapter, _check_domain, _settle, _move, keep_version)

FILE = """\
bases:
  tiny: {source: ./tiny, note: License checked}
recipes:
  halves: {method: linear, coefficients: {spirit: 0.5, ingredient: 0.5}}
  house:
    - ./house.yaml
    - {method: linear, coefficients: {spirit: 0.3, ingredient: 0.7}}
domains:
  beauty:
    title: Beauty
    recipe: house
    tags: [team-a]
    links: {wiki: "https://wiki.example.org/beauty"}
  toys:
policies:
  beauty: {gate: {require: {metric: NDCG@3, margin: -0.02}, approvals: 1}, serve: live, promote: automatic}
adapters:
  - {source: ./spirit, base: tiny, spirit: true, aliases: [champion]}
  - {source: ./one, base: tiny, domain: beauty, metrics: {HR@1: 0.5}, tags: [trial], note: first, description: The first}
  - {source: ./two, base: tiny, domain: beauty, version: v2, aliases: [champion, candidate]}
aliases:
  beauty@fallback: v1
"""


@pytest.fixture
def folder(make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path: Path) -> Path:
    """What the file names, beside it."""
    place = tmp_path / "declared"
    place.mkdir()
    make_base(place / "tiny")
    (place / "house.yaml").write_text("method: linear\ncoefficients: {spirit: 0.4, ingredient: 0.6}\n")
    for seed, name in enumerate(("spirit", "one", "two", "three")):
        make_adapter(place / name, seed=seed)
    return place


@pytest.fixture
def bring(registry: Registry, folder: Path) -> Callable[..., dict[str, Outcome]]:
    """(text, dry_run): what became of each object, by kind and name."""

    def run(text: str, *, dry_run: bool = False, into: Registry = registry) -> dict[str, Outcome]:
        document = parse_document(text.encode(), name="registry.yaml", folder=folder)
        outcomes = list(apply_document(into, document, WAYS, dry_run=dry_run))
        named = [each for each in outcomes if "archived" not in each.changes]
        found = {f"{outcome.kind} {outcome.name}": outcome for outcome in named}
        assert len(found) == len(named)
        return found

    return run


def test_a_dry_run_notes_what_applying_notes(bring: Callable[..., dict[str, Outcome]], folder: Path) -> None:
    weights = folder / "one" / "adapter_model.safetensors"
    untrained = {name: tensor * ("lora_B" not in name) for name, tensor in load_file(weights).items()}
    save_file(untrained, weights)
    text = "bases: {tiny: {source: ./tiny}}\ndomains: {beauty: }\n"
    text += "adapters: [{source: ./one, base: tiny, domain: beauty, note: first}]"
    planned = bring(text, dry_run=True)["adapter beauty@v1"]
    done = bring(text)["adapter beauty@v1"]
    assert "lora_B" in "".join(planned.remarks)
    assert planned.remarks == done.remarks
    assert planned.changes["note"] == done.changes["note"] == (None, "first")


def about(row: Any) -> list[Any]:
    return [row.description, row.note, row.tags, dict(row.metrics), dict(row.links)]


def _state(registry: Registry) -> dict[str, Any]:
    """All that the file should bring over, read by the registry's own lists."""
    return {
        "bases": [(row.name, row.digest, row.source, row.revision, about(row)) for row in registry.bases.list()],
        "policies": [
            *((gate.domain, gate.version, gate.require, gate.approvals) for gate in registry.gates.list()),
            *registry.serving.policies().values(),
        ],
        "domains": [
            (row.name, row.title, row.data, row.trainer, row.recipe, about(row)) for row in registry.domains.list()
        ],
        "recipes": [
            (each.ref, each.digest) for row in registry.recipes.list() for each in registry.recipes.log(row.name)
        ],
        "adapters": [
            (row.base, row.ref, row.digest, row.aliases, about(row), dict(row.context),
             row.archived_at is not None)
            for row in reversed(registry.adapters.list(limit=1000))
        ],
    }  # fmt: skip


def test_a_file_is_applied_and_applying_it_again_changes_nothing(bring: Any, registry: Registry) -> None:
    planned = bring(FILE, dry_run=True)
    assert not any(_state(registry).values())
    assert registry.events.list() == []
    found = bring(FILE)
    assert {name: each.action for name, each in planned.items()} == {name: each.action for name, each in found.items()}
    assert {each.action for name, each in found.items() if name != "policy beauty"} == {"created"}
    assert found.keys() == {
        "base tiny", "recipe halves@v1", "recipe house@v1", "recipe house@v2", "domain beauty", "domain toys", "adapter spirit@v1", "alias spirit@champion", "adapter beauty@v1",
        "adapter beauty@v2", "alias beauty@champion", "alias beauty@candidate", "alias beauty@fallback", "policy beauty",
    }  # fmt: skip
    assert registry.domains.get("beauty").recipe == "house@v2" == planned["domain beauty"].changes["recipe"][1]
    assert registry.adapters.resolve("beauty").ref == "beauty@v2"
    assert registry.adapters.resolve("beauty@fallback").tags == ("trial",)
    before, events = _state(registry), len(registry.events.list(limit=1000))
    for dry_run in (True, False):
        again = bring(FILE, dry_run=dry_run)
        assert {each.action for each in again.values()} == {"unchanged"}
        assert again.keys() == found.keys()
    assert (_state(registry), len(registry.events.list(limit=1000))) == (before, events)


def test_what_moved_is_shown_before_and_after(bring: Any, registry: Registry) -> None:
    bring(FILE)
    moved = FILE.replace("title: Beauty", "title: All beauty").replace("fallback: v1", "fallback: v2")
    moved += "  beauty@oldest: v1\n"
    planned = bring(moved, dry_run=True)
    assert planned["domain beauty"].changes == {"title": ("Beauty", "All beauty")}
    assert planned["alias beauty@fallback"].changes == {"version": ("v1", "v2")}
    assert planned["alias beauty@oldest"].action == "created"
    assert sum(each.action == "unchanged" for each in planned.values()) == 12
    assert registry.domains.get("beauty").title == "Beauty"
    assert bring(moved).keys() == planned.keys()
    assert registry.domains.get("beauty").title == "All beauty"
    assert registry.adapters.resolve("beauty@fallback").version == 2


def test_what_people_edit_is_brought_to_what_the_file_says(bring: Any, registry: Registry) -> None:
    bring(FILE)
    registry.edits.adapter("beauty@v1", Edit(tags=["noisy"], metrics={"MRR": 0.25}))
    edited = FILE.replace("tags: [trial], note: first", "tags: [trial, prod], note: second")
    for dry_run in (True, False):
        found = bring(edited, dry_run=dry_run)
        assert found["adapter beauty@v1"].changes == {
            "tags": (["trial", "noisy"], ["trial", "prod"]),
            "note": ("first", "second"),
        }
        assert sum(each.action == "unchanged" for each in found.values()) == len(found) - 1
    row = registry.adapters.resolve("beauty@v1")
    assert (row.tags, row.note, dict(row.metrics)) == (("trial", "prod"), "second", {"HR@1": 0.5, "MRR": 0.25})
    bad = FILE.replace("https://wiki", "javascript:alert").replace("./one", "./three")
    assert bring(bad)["domain beauty"].error is not None
    assert {each.action for each in bring(edited).values()} == {"unchanged"}


def test_an_object_that_fails_stops_only_what_needs_it(bring: Any, registry: Registry, folder: Path) -> None:
    (folder / "one" / "adapter_model.safetensors").write_bytes(b"no safetensors")
    text = FILE.replace("  toys:\n", "  toys: {trainer: nonsense}\n").replace("version: v2, ", "")
    text = text.replace("aliases:\n  beauty", "  - {source: ./three, base: tiny, domain: toys}\naliases:\n  beauty")
    for dry_run in (True, False):
        found = bring(text, dry_run=dry_run)
        failed = {name: each.error["code"] for name, each in found.items() if each.error}
        assert failed == {
            "domain toys": "usage",
            f"adapter beauty from {folder / 'one'}": "invalid_artifact",
            f"adapter toys from {folder / 'three'}": "not_found",
        }
        assert found["domain toys"].line == 14
        assert found["adapter beauty@v1"].action == "created"
    assert [row.ref for row in registry.adapters.list()] == ["beauty@v1", "spirit@v1"]


def test_a_digest_or_a_version_that_is_another_one_is_refused(bring: Any, registry: Registry) -> None:
    bring(FILE)
    digest = registry.adapters.resolve("beauty@v1").digest
    other = "bases: {tiny: {source: ./tiny}}\nadapters:\n  - {source: ./three, base: tiny, domain: beauty, %s}\n"
    for given, code in ((f"digest: 'sha256:{'0' * 64}'", "invalid_artifact"), ("version: 7", "conflict")):
        for dry_run in (True, False):
            (outcome,) = [each for each in bring(other % given, dry_run=dry_run).values() if each.kind == "adapter"]
            assert outcome.error is not None
            assert outcome.error["code"] == code
    # what is there already is found by its digest, and its source need not be there
    found = bring(f"adapters:\n  - {{source: ./gone, base: tiny, domain: beauty, digest: '{digest}'}}\n")
    assert found["adapter beauty@v1"].action == "unchanged"
    assert len(registry.adapters.list()) == 3


def test_adapters_are_stored_in_threads_and_numbered_in_the_files_order(
    bring: Any, registry: Registry, folder: Path, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    store = Adapters.store
    monkeypatch.setattr(
        Adapters, "store", lambda *given, **named: threads.append(threading.current_thread()) or store(*given, **named)
    )
    names = [make_adapter(folder / f"n{number}", seed=10 + number).name for number in range(9)]
    (folder / "n3" / "adapter_model.safetensors").write_bytes(b"no safetensors")
    entries = [f"  - {{source: ./{name}, base: tiny, domain: beauty}}" for name in names]
    entries[5] = entries[5].replace("}", f", digest: 'sha256:{'0' * 64}'}}")
    text = "\n".join(["bases: {tiny: {source: ./tiny}}", "domains: {beauty: {}}", "adapters:", *entries])
    found = bring(text)
    failed = [name for name, each in found.items() if each.error]
    assert failed == [f"adapter beauty from {folder / name}" for name in ("n3", "n5")]
    kept = [0, 1, 2, 4, 6, 7, 8]
    base = registry.bases.get("tiny")
    digests = [registry.adapters.foresee(folder / f"n{number}", base=base)[0] for number in kept]
    assert [row.digest for row in registry.adapters.versions()] == digests
    assert registry.store.digests() == {base.digest, *digests}, "what is refused is not stored"
    assert len(threads) == 9
    assert threading.main_thread() not in threads


def test_a_base_that_is_there_with_other_content_is_refused(
    bring: Any, make_base: Callable[..., Path], folder: Path
) -> None:
    bring(FILE)
    make_base(folder / "other", seed=5)
    (outcome,) = bring("bases: {tiny: {source: ./other}}").values()
    assert outcome.error is not None
    assert outcome.error["code"] == "conflict"


def test_an_exported_registry_applied_to_an_empty_one_is_the_same(
    bring: Any, registry: Registry, create_registry: Callable[[Settings], Registry], tmp_path: Path
) -> None:
    uploaded = tmp_path / "uploaded"
    uploaded.mkdir()
    (uploaded / "dataset.yaml").write_text("format: csv\n")
    data = registry.store.add_folder(uploaded).digest
    bring(FILE)
    registry.domains.add("toys", data=data)
    registry.adapters.archive("beauty@v1", base="tiny")
    for number, write in enumerate((to_yaml, to_json)):
        home = tmp_path / f"copy-{number}"
        with create_registry(Settings.load(home=home, cwd=tmp_path, environ={"HOME": str(tmp_path)})) as copy:
            text = write(export(registry))
            known, kept = export(registry)["domains"]["toys"], str(registry.store.local(data))
            assert known == {"title": "toys", "data": data, "files": kept}
            for files, code in ((None, "not_found"), (str(uploaded.parent / "declared"), "invalid_artifact")):
                lacking = bring(
                    to_yaml({"domains": {"other": {"data": data} | ({"files": files} if files else {})}}), into=copy
                )["domain other"]
                assert lacking.error is not None
                assert (lacking.error["code"], "verify" in lacking.error["hint"]) == (code, False)
            assert bring(text, into=copy, dry_run=True)["domain toys"].action == "created"
            assert not copy.store.has(data)
            found = bring(text, into=copy)
            assert not [each for each in found.values() if each.error]
            assert _state(copy) == _state(registry)
            assert _state(copy)["adapters"][1][-1], "it is archived there too"
            assert copy.domains.get("toys").data == data
            assert (copy.data_folder(data) / "dataset.yaml").read_text() == "format: csv\n"
            assert {each.action for each in bring(text, into=copy).values()} == {"unchanged"}
            assert {each.action for each in bring(text).values()} == {"unchanged"}


def test_policies_are_set_changed_and_removed_and_each_change_is_an_event(bring: Any, registry: Registry) -> None:
    dry = bring(FILE, dry_run=True)["policy beauty"]
    assert {*dry.changes} == {"gate", "serve", "promote"}
    bring(FILE)
    gate, served = registry.gates.get("beauty"), registry.serving.policy("beauty")
    assert gate is not None
    assert gate.requirement is not None
    assert (gate.requirement.metric, gate.requirement.margin, gate.approvals) == ("NDCG@3", -0.02, 1)
    assert (served.alias, served.promote) == ("live", "automatic")
    again = bring("policies: {beauty: {gate: {approvals: 2}}}")["policy beauty"]
    assert again.action == "changed"
    assert [each.approvals for each in registry.gates.history("beauty")] == [2, 1]
    assert registry.serving.policy("beauty") == served
    assert bring("policies: {beauty: {gate: {approvals: 2}}}")["policy beauty"].action == "unchanged"
    bring("policies: {beauty: {gate: false}}")
    assert registry.gates.get("beauty") is None
    assert bring("policies: {beauty: {gate: false}}")["policy beauty"].action == "unchanged"
    refused = bring("policies: {nowhere: {promote: manual}, beauty: {serve: candidate}}")
    assert {each.error and each.error["code"] for each in refused.values()} == {"not_found", "usage"}
    for wrong in ("{gate: yes}", "{gate: {require: {metric: F1}}}", "{promote: often}", "{gates: false}"):
        with pytest.raises(UsageError, match="policies"):
            bring(f"policies: {{beauty: {wrong}}}")


def test_webhooks_are_brought_without_secrets_and_a_copy_calls_nobody(bring: Any, registry: Registry) -> None:
    text = "domains: {beauty: {}}\nwebhooks:\n  ops: {url: 'https://8.8.8.8/hook', secret: 'env:OPS', domains: [beauty, spirit], %s}\n"
    first = text % "kinds: [build.failed]"
    assert bring(first, dry_run=True)["webhook ops"].action == "created"
    assert registry.webhooks.list() == []
    made = bring(first)["webhook ops"]
    hook = registry.webhooks.get("ops")
    assert (made.action, bool(made.remarks), hook.active) == ("created", True, False)
    assert (hook.kinds, hook.domains, hook.secret) == (("build.failed",), ("beauty", "spirit"), "env:OPS")
    assert bring(first)["webhook ops"].action == "unchanged"
    second = text % "kinds: [domain.stale, build.failed], active: true"
    assert {*bring(second, dry_run=True)["webhook ops"].changes} == {"kinds", "active"}
    assert {*bring(second)["webhook ops"].changes} == {"kinds", "active"}
    assert (
        bring(first.replace("kinds: [build.failed]", "kinds: [build.failed, domain.stale]"))["webhook ops"].action
        == "unchanged"
    )
    assert registry.webhooks.get("ops").active

    exported = export(registry)
    assert "active" not in exported["webhooks"]["ops"]
    assert "webhooks" not in export(registry, with_webhooks=False)
    registry.webhooks.remove("ops")
    copied = bring(to_yaml({"webhooks": exported["webhooks"]}))["webhook ops"]
    assert (copied.action, registry.webhooks.get("ops").active) == ("created", False)
    for wrong in ("{url: 'https://8.8.8.8/'}", "{secret: 'env:X'}", "{url: 'https://10.0.0.1/', secret: 'env:X'}",
                  "{url: 'https://8.8.8.8/', secret: 'env:X', domains: [nowhere]}"):  # fmt: skip
        assert bring(f"webhooks: {{new: {wrong}}}", dry_run=True)["webhook new"].action == "failed", wrong
    for wrong in ("{secret: a-secret-of-mine-0123456789}", "{secret: 'env:'}", "{kind: [x]}", "{active: 1}"):
        with pytest.raises(UsageError):
            bring(f"webhooks: {{new: {wrong}}}")


def test_without_its_source_the_bytes_come_from_the_store(
    bring: Any, registry: Registry, open_sql: Any, tmp_path: Path, create_registry: Callable[[Settings], Registry]
) -> None:
    bring(FILE)
    content = export(registry)
    for entry in (*content["bases"].values(), *content["adapters"]):
        del entry["files"]
    with create_registry(
        Settings.load(
            home=tmp_path / "second",
            store_url=registry.settings.store_url,
            cwd=tmp_path,
            environ={"HOME": str(tmp_path)},
        )
    ) as second:
        assert not [each for each in bring(to_yaml(content), into=second).values() if each.error]
        assert _state(second) == _state(registry)
    with create_registry(
        Settings.load(home=tmp_path / "third", cwd=tmp_path, environ={"HOME": str(tmp_path)})
    ) as third:
        del content["bases"]["tiny"]["source"]
        found = bring(to_yaml(content), into=third)
        assert found["base tiny"].error is not None
        assert {each.action for each in found.values() if each.kind in ("base", "adapter", "alias")} == {"failed"}


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("bases: {}\ndomain: {}\n", 2, "'domains'"),
        ("domains:\n  beauty:\n    titel: x\n", 3, "'title'"),
        ("domains:\n  beauty:\n    title: 3\n", 3, "text"),
        ("domains:\n  Beauty: {}\n", 2, "a-z"),
        ("domains: [beauty]\n", 1, "mapping"),
        ("adapters:\n  - {source: ./x, base: tiny, domain: beauty}\n  - {source: ./x, base: tiny}\n", 3, "spirit"),
        ("adapters:\n  - base: tiny\n    domain: b\n    source: ./x\n    digest: abc\n", 5, "sha256"),
        ("adapters:\n  - {source: ./x, domain: beauty}\n", 2, "base"),
        ("adapters:\n  - {base: tiny, domain: beauty}\n", 2, "source"),
        ("aliases:\n  beauty@champion: v1\n  beauty: v1\n", 3, "alias"),
        ("aliases:\n  beauty@champion: newest\n", 2, "version"),
        ("bases:\n  tiny:\n    revision: main\n", 2, "source"),
        ("domains:\n  beauty:\n    data: ./data\n    files: ./data\n", 4, "data"),
        (
            "adapters:\n"
            "  - {source: ./a, base: t, domain: b, aliases: [champion]}\n"
            "  - {source: ./b, base: t, domain: b, aliases: [champion]}\n",
            3,
            "line 2",
        ),
    ],
)
def test_a_file_that_is_not_sound_is_refused_whole_with_the_line(
    bring: Any, registry: Registry, text: str, line: int, says: str
) -> None:
    with pytest.raises(UsageError, match=f"line {line}: .*{says}"):
        bring(text)
    assert registry.domains.list() == []


def test_all_problems_are_named_at_once_and_json_is_named_by_key(bring: Any, folder: Path) -> None:
    text = "domains:\n  a: {titel: x}\n  b: {dat: y}\nadapters: 3\n"
    with pytest.raises(UsageError) as caught:
        bring(text)
    assert [f"line {number}:" in str(caught.value) for number in (2, 3, 4)] == [True] * 3
    with pytest.raises(UsageError, match=r"domains\.a\.titel"):
        parse_document(to_json(yaml.safe_load(text)).encode(), name="r.json", folder=folder, suffix=".json")


def test_the_number_of_queries_of_a_second_application_does_not_grow(bring: Any, registry: Registry) -> None:
    from sqlalchemy import event

    queries: list[str] = []
    engine = registry._database._engine
    event.listen(engine, "before_cursor_execute", lambda *words: queries.append(words[2]))
    counts = []
    for number in (3, 30):
        text = "domains:\n" + "".join(f"  shop-{n}: {{title: Shop}}\n" for n in range(number))
        bring(text)
        queries.clear()
        bring(text)
        counts.append(len(queries))
    assert counts[0] == counts[1]
