"""Base models, domains, adapters and aliases, and what their events say."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from reccocktail.registry import Adapter, Base, Registry, Settings
from reccocktail.registry.catalog.adapters import AdapterFilter
from reccocktail.registry.catalog.registration import Checks, Labels
from reccocktail.registry.errors import (
    BaseMismatchError,
    ConflictError,
    DatabaseError,
    InvalidArtifactError,
    InvalidReferenceError,
    NotFoundError,
    StoreError,
    UsageError,
)
from reccocktail.registry.registry import Missing

Make = Callable[..., Path]
Add = Callable[..., Adapter]


# --- the registry itself


def test_creating_twice_is_opening(registry: Registry, base: Base) -> None:
    with Registry.create(registry.settings) as again:
        assert again.bases.only() == again.bases.get("tiny")
        assert again.bases.get("tiny").digest == base.digest


def test_a_registry_that_was_not_created_does_not_open(untouched: Settings) -> None:
    with pytest.raises(DatabaseError) as caught:
        Registry.open(untouched)
    assert caught.value.hint == "run `reccocktail init`"
    assert not untouched.home.exists()


def test_a_registry_whose_store_is_gone_does_not_open(registry: Registry) -> None:
    Path(registry.settings.store_url).rename(registry.settings.home / "elsewhere")
    with pytest.raises(StoreError, match="not an artifact store"):
        Registry.open(registry.settings)


def test_a_store_that_is_refused_leaves_no_database(settings: Settings) -> None:
    with pytest.raises(StoreError, match="ftp://"):
        Registry.create(replace(settings, store_url="ftp://bucket"))
    assert list(settings.home.iterdir()) == []


def test_what_rows_refer_to_and_the_store_lacks_is_named(registry: Registry, base: Base, add: Add) -> None:
    registry.domains.add("beauty")
    adapter = add("beauty")
    registry.builds.request("beauty", base.name, "waits", {}, {})
    build = registry.builds.claim("w")
    assert build is not None
    with registry.store.staging("build") as staged:
        (staged / "model.safetensors").write_bytes(b"x")
        result = registry.store.adopt(staged).digest
    registry.builds.succeed(build.id, "w", result, None, {"artifact": adapter.digest})
    assert registry.missing() == []
    for digest in registry.digests():
        shutil.rmtree(registry.store.folder(digest))
    assert registry.missing() == [
        Missing("base tiny", base.digest),
        Missing("adapter beauty@v1", adapter.digest),
        Missing(f"build {build.id}", result),
        Missing(f"build {build.id}", adapter.digest),
    ]


def test_a_store_of_which_the_database_knows_nothing_is_not_emptied(registry: Registry, base: Base, add: Add) -> None:
    """A database that was just made anew, or the wrong one, must not cost the bytes."""
    orphan = registry.store.add_folder(registry.bases.folder(base), files=["README.md"])
    adapter = add("spirit")
    assert registry.collect(grace=timedelta(0)).trees == (orphan.digest,)
    with Registry.create(
        replace(registry.settings, database_url=f"sqlite:///{registry.settings.home}/new.sqlite")
    ) as new:
        with pytest.raises(ConflictError, match="refers to none of the 2 folders in the store") as caught:
            new.collect(grace=timedelta(0))
        assert "restore the database" in (caught.value.hint or "")
        assert registry.store.digests() == {base.digest, adapter.digest}
        assert len(new.collect(grace=timedelta(0), force=True).trees) == 2
    assert len(registry.missing()) == 2


def test_text_that_is_not_utf8_is_refused_before_bytes_are_stored(
    registry: Registry, make_base: Make, make_adapter: Make, base: Base, tmp_path: Path
) -> None:
    broken = os.fsdecode(b"/data/\xff")
    trees = list((registry.store.root / "trees").iterdir())
    for attempt in (
        lambda: registry.bases.add("b", make_base(tmp_path / "b", seed=1), source=broken),
        lambda: registry.domains.add("beauty", data=broken),
        lambda: registry.domains.add("beauty", title=broken),
        lambda: registry.adapters.add(
            make_adapter(tmp_path / "a"), labels=Labels(note=broken), base=base, role="spirit"
        ),
    ):
        with pytest.raises(UsageError, match=r"dcff' is not UTF-8"):
            attempt()
    assert list((registry.store.root / "trees").iterdir()) == trees


@pytest.mark.parametrize(
    "given",
    [
        *(
            {"metrics": {"HR@1": value}}
            for value in (True, None, "x", {"a": 1}, [1], 10**400, float("nan"), float("inf"))
        ),
        *({"metrics": {name: 1.0}} for name in ("", " ", "a>b", " a", "a\x1b", "a\nb", "n" * 201)),
        *({"tags": [tag]} for tag in ("", " ", None, 1, "a\0", "a\nb", "\x9b", "t" * 201)),
        {"note": "a\0b"},
    ],
    ids=repr,
)
def test_metrics_tags_and_notes_that_nobody_could_search_for_are_refused(
    registry: Registry, base: Base, make_adapter: Make, tmp_path: Path, given: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        registry.adapters.add(make_adapter(tmp_path / "a"), base=base, role="spirit", labels=Labels(**given))
    assert registry.adapters.list() == []
    assert registry.store.digests() == {base.digest}


def test_a_trainer_that_still_writes_registers_nothing(
    registry: Registry,
    base: Base,
    make_adapter: Make,
    lora_tensors: Callable[..., Any],
    write_safetensors: Make,
    tmp_path: Path,
) -> None:
    """What is checked is what was kept, not what was there a moment before."""
    folder, spoilt = (
        make_adapter(tmp_path / "a"),
        {name: value * float("nan") for name, value in lora_tensors().items()},
    )

    def write_on(_: int) -> None:
        write_safetensors(folder / "adapter_model.safetensors", spoilt)

    with pytest.raises(InvalidArtifactError, match="NaN or infinite"):
        registry.adapters.add(folder, base=base, role="spirit", progress=write_on)
    assert registry.adapters.list() == []


def test_rows_carry_the_actor_and_aware_times(registry: Registry) -> None:
    with Registry.open(registry.settings, actor="ann") as ann:
        domain = ann.domains.add("beauty")
    assert domain.created_by == "ann"
    assert domain.created_at.tzinfo is not None
    assert abs((datetime.now(UTC) - domain.created_at).total_seconds()) < 60


# --- base models


def test_a_base_is_stored_with_its_facts(registry: Registry, base: Base) -> None:
    assert base.created
    assert (base.source, base.revision, base.architecture) == ("org/tiny", "c0ffee", "LlamaForCausalLM")
    files = {path.name for path in registry.bases.folder(base).iterdir()}
    assert files == {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    assert registry.bases.facts(base).parameters == base.parameters
    assert json.loads(json.dumps(base.to_json()))["created_at"] == base.created_at.isoformat()
    assert base.to_json().keys().isdisjoint({"created", "skipped"})


def test_only_a_models_own_files_are_stored_and_the_rest_is_named(
    registry: Registry, make_base: Make, tmp_path: Path
) -> None:
    folder = make_base(tmp_path / "m")
    for name in (
        ".gitattributes",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "modeling.py",
        "tokenizer_config.json",
    ):
        (folder / name).write_text("x")
    (folder / ".git").mkdir()
    added = registry.bases.add("m", folder, source=str(folder))
    assert added.skipped == (".git", ".gitattributes", "consolidated.safetensors", "modeling.py", "pytorch_model.bin")
    assert (registry.bases.folder(added) / "tokenizer_config.json").exists()


def test_a_name_keeps_its_content(registry: Registry, base: Base, make_base: Make, tmp_path: Path) -> None:
    again = registry.bases.add("tiny", tmp_path / "tiny", source="org/tiny")
    assert not again.created
    assert again.created_at == base.created_at
    with pytest.raises(ConflictError, match="other content"):
        registry.bases.add("tiny", make_base(tmp_path / "other", seed=1), source="org/tiny")


def test_a_sharded_base_keeps_its_index(
    registry: Registry, make_base: Make, write_safetensors: Make, tmp_path: Path
) -> None:
    import numpy as np

    folder = make_base(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "s-1.safetensors", {"a": np.ones(2, "float32")})
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "s-1.safetensors"}}')
    added = registry.bases.add("m", folder, source="here")
    assert registry.bases.facts(added).tensors.keys() == {"a"}


def test_the_only_base_is_meant_unless_there_are_several(registry: Registry, make_base: Make, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no base model yet"):
        registry.bases.only()
    registry.bases.add("a", make_base(tmp_path / "a"), source="a")
    assert registry.bases.only().name == "a"
    registry.bases.add("b", make_base(tmp_path / "b"), source="b")
    with pytest.raises(UsageError, match="a, b"):
        registry.bases.only()


# --- domains


def test_a_domain_changes_only_in_what_is_given(registry: Registry) -> None:
    registry.domains.add("beauty", title="Beauty", data="/data/beauty")
    registry.domains.add("beauty", title="Beauty", data="/data/beauty")
    changed = registry.domains.add("beauty", recipe="average")
    assert (changed.title, changed.data, changed.recipe) == ("Beauty", "/data/beauty", "average")
    assert [event.kind for event in registry.events.list(subject="beauty")] == ["domain.changed", "domain.added"]
    assert [domain.name for domain in registry.domains.list()] == ["beauty"]


def test_the_hint_for_an_unknown_domain_fits_what_was_probably_meant(registry: Registry) -> None:
    registry.domains.add("skin-care")
    with pytest.raises(NotFoundError, match="did you mean 'skin-care'") as caught:
        registry.domains.get("skincare")
    assert "skin-care" in str(caught.value.hint)
    assert "domain add" not in str(caught.value.hint)
    with pytest.raises(NotFoundError) as caught:
        registry.domains.get("motor-oil")
    assert "domain add motor-oil" in str(caught.value.hint)


def test_spirit_is_no_domain(registry: Registry) -> None:
    with pytest.raises(UsageError, match="reserved"):
        registry.domains.add("spirit")
    with pytest.raises(NotFoundError, match="not a domain"):
        registry.domains.get("spirit")


# --- adapters


def test_versions_are_numbered_per_domain_and_spirit(registry: Registry, add: Add) -> None:
    registry.domains.add("beauty")
    registry.domains.add("office")
    refs = [add("beauty", 1).ref, add("beauty", 2).ref, add("office", 1).ref, add("spirit", 1).ref]
    assert refs == ["beauty@v1", "beauty@v2", "office@v1", "spirit@v1"]
    assert [adapter.ref for adapter in registry.adapters.list()] == refs[::-1]


def test_an_adapter_answers_with_what_it_was_given_and_what_it_is(registry: Registry, add: Add) -> None:
    registry.domains.add("beauty")
    adapter = add("beauty", metrics={"hr@5": 0.5}, tags=["a", "b", "a"], note="first", context={"run": {"id": 7}})
    assert adapter.created
    assert adapter.to_json() | {"digest": 0, "created_at": 0, "created_by": 0} == {
        "ref": "beauty@v1", "role": "ingredient", "domain": "beauty", "base": "tiny", "version": 1, "digest": 0, "rank": 2,
        "alpha": 4, "target_modules": ["q_proj", "v_proj"], "tensors": 8, "bytes": 448, "metrics": {"hr@5": 0.5},
        "tags": ["a", "b"], "note": "first", "context": {"run": {"id": 7}}, "aliases": [], "archived_at": None,
        "created_at": 0, "created_by": 0, "description": None, "links": {}, "kind": "lora",
    }  # fmt: skip
    facts = registry.adapters.facts(adapter)
    assert len(facts.modules) == 4
    assert facts.modules[0].a.start >= 0


def test_the_same_content_gives_the_same_version_back(registry: Registry, add: Add) -> None:
    registry.domains.add("beauty")
    first, again = add("beauty", 1), add("beauty", 1)
    assert again.ref == first.ref
    assert not again.created
    assert len(registry.adapters.list()) == 1


def test_what_is_said_about_known_content_and_not_taken_over_is_named(registry: Registry, add: Add) -> None:
    registry.domains.add("beauty")
    about = {"metrics": {"hr@5": 0.5}, "tags": ["a"], "note": "first"}
    assert add("beauty", 1, **about).ignored == add("beauty", 1, **about).ignored == add("beauty", 1).ignored == ()
    again = add("beauty", 1, metrics={"hr@5": 0.6}, tags=["a", "b"], note="second")
    assert again.ignored == ("metrics", "tags", "note")
    assert (again.metrics, again.tags, again.note) == ({"hr@5": 0.5}, ("a",), "first")
    assert "ignored" not in again.to_json()


def test_archived_content_is_not_added_again(registry: Registry, add: Add) -> None:
    registry.domains.add("beauty")
    registry.adapters.archive(add("beauty", 1).ref)
    with pytest.raises(ConflictError, match="beauty@v1, which is archived"):
        add("beauty", 1)


KEPT = (
    "README.md", "LICENSE", "licence-apache-2.0.txt", "NOTICE", "USE_POLICY.md", "generation_config.json", "recipe.json",
    "processor_config.json", "provenance.json",
)  # fmt: skip
LEFT = (
    "handler.py", "modeling_evil.py", "libfast.so", "model.h5", "model.gguf", "run.sh", "extra.pkl", "training_args.bin",
    "optimizer.pt", "trainer_state.json", "tokenizer.py", "tokenizer.so", "chat_template.py", "LICENSE.py", "license.sh",
    "notice.exe", "model.safetensors", ".hidden", "requirements.txt", "adapter_config.json.bak", "a\x1b[31m.py",
)  # fmt: skip


def test_an_adapter_is_stored_with_what_is_on_the_list_and_the_rest_is_named(
    registry: Registry, base: Base, make_adapter: Make, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "a")
    own = {path.name for path in folder.iterdir()}
    for name in (*KEPT, *LEFT):
        (folder / name).write_text("x")
    (folder / "checkpoint-1").mkdir()
    os.mkfifo(folder / "pipe")
    added = registry.adapters.add(folder, base=base, role="spirit")
    assert {*added.skipped} == {*LEFT, "checkpoint-1", "pipe"}
    assert {path.name for path in registry.adapters.folder(added).iterdir()} == {*own, *KEPT}


def test_named_chat_templates_are_kept_with_the_tokenizer_and_programs_beside_them_are_not(
    registry: Registry, make_base: Make, tmp_path: Path
) -> None:
    folder = make_base(tmp_path / "m")
    (folder / "additional_chat_templates").mkdir()
    for name in ("rag.jinja", "tool_use.jinja", "evil.py"):
        (folder / "additional_chat_templates" / name).write_text("x")
    added = registry.bases.add("m", folder, source=str(folder))
    assert added.skipped == ("additional_chat_templates/evil.py",)
    kept = registry.store.tree(added.digest).files
    assert {name for name in kept if "/" in name} == {
        "additional_chat_templates/rag.jinja",
        "additional_chat_templates/tool_use.jinja",
    }


def test_an_adapter_may_name_its_base_by_name_source_or_stored_folder(
    registry: Registry, base: Base, make_adapter: Make, tmp_path: Path
) -> None:
    for seed, name in enumerate(("tiny", "org/tiny", str(registry.bases.folder(base)))):
        folder = make_adapter(tmp_path / f"n{seed}", seed=seed, config={"base_model_name_or_path": name})
        assert registry.adapters.add(folder, base=base, role="spirit").version == seed + 1
    folder = make_adapter(tmp_path / "other", seed=9, config={"base_model_name_or_path": "org/other"})
    with pytest.raises(BaseMismatchError):
        registry.adapters.add(folder, base=base, role="spirit")
    assert registry.adapters.add(folder, checks=Checks(allow_base_mismatch=True), base=base, role="spirit").version == 4


def test_a_refused_adapter_leaves_no_row_and_no_bytes(
    registry: Registry, base: Base, make_adapter: Make, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "a", config={"use_dora": True})
    trees = list((registry.store.root / "trees").iterdir())
    with pytest.raises(InvalidArtifactError):
        registry.adapters.add(folder, base=base, role="spirit")
    assert registry.adapters.list() == []
    assert list((registry.store.root / "trees").iterdir()) == trees


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"role": "spirit", "domain": "beauty"}, UsageError),
        ({"role": "ingredient"}, UsageError),
        ({"role": "ingredient", "domain": "spirit"}, UsageError),
        ({"role": "ingredient", "domain": "unknown"}, NotFoundError),
        ({"role": "spirit", "labels": Labels(metrics={"a": float("nan")})}, UsageError),
        ({"role": "spirit", "labels": Labels(context={"a": object()})}, UsageError),
    ],
)
def test_an_impossible_addition_is_refused(
    registry: Registry, base: Base, make_adapter: Make, tmp_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        registry.adapters.add(make_adapter(tmp_path / "a"), base=base, **options)


# --- references


def test_a_bare_name_means_the_champion_otherwise_the_newest(registry: Registry, add: Add) -> None:
    registry.domains.add("beauty")
    for seed in (1, 2, 3):
        add("beauty", seed)
    assert registry.adapters.resolve("beauty").version == 3
    assert registry.adapters.alias("beauty@v1", "champion").aliases == ("champion",)
    assert registry.adapters.resolve("beauty").version == 1
    assert registry.adapters.resolve("beauty@champion").version == 1
    assert registry.adapters.resolve("beauty@v2").version == 2


def test_an_archived_version_is_passed_over_unless_it_is_named(registry: Registry, add: Add) -> None:
    registry.domains.add("beauty")
    for seed in (1, 2, 3):
        add("beauty", seed)
    registry.adapters.alias("beauty@v1", "champion")
    registry.adapters.archive("beauty@v1", force=True)
    registry.adapters.archive("beauty@v3")
    assert registry.adapters.resolve("beauty").version == 2
    assert registry.adapters.resolve("beauty@v3").archived_at is not None
    assert registry.adapters.resolve("beauty@champion").version == 1
    with pytest.raises(ConflictError, match="archived"):
        registry.adapters.alias("beauty@v3", "champion")
    registry.adapters.archive("beauty@v2")
    with pytest.raises(NotFoundError):
        registry.adapters.resolve("beauty")


def test_an_unknown_reference_is_not_found(registry: Registry, add: Add) -> None:
    registry.domains.add("beauty")
    with pytest.raises(NotFoundError, match="no adapter yet"):
        registry.adapters.resolve("beauty")
    add("beauty")
    for ref in ("beauty@v2", "beauty@candidate", "unknown", "spirit"):
        with pytest.raises(NotFoundError):
            registry.adapters.resolve(ref)
    with pytest.raises(InvalidReferenceError):
        registry.adapters.resolve("beauty@")


def test_a_name_with_adapters_for_two_bases_needs_the_base(
    registry: Registry, add: Add, make_base: Make, tmp_path: Path
) -> None:
    other = registry.bases.add("other", make_base(tmp_path / "o", seed=1), source="o")
    add("spirit", 1)
    add("spirit", 1, base=other)
    with pytest.raises(UsageError) as caught:
        registry.adapters.resolve("spirit")
    assert "--base" in (caught.value.hint or "")
    assert registry.adapters.resolve("spirit", base="other").base == "other"
    assert [adapter.base for adapter in registry.adapters.list(AdapterFilter(base="tiny"))] == ["tiny"]


def test_lists_are_filtered_and_paged(registry: Registry, add: Add) -> None:
    registry.domains.add("beauty")
    for seed in range(5):
        add("beauty", seed)
    add("spirit")
    assert [a.ref for a in registry.adapters.list(AdapterFilter(role="spirit"))] == ["spirit@v1"]
    first = registry.adapters.list(AdapterFilter(domain="beauty"), limit=2)
    second = registry.adapters.list(AdapterFilter(domain="beauty"), limit=2, after=first[-1].ref)
    assert [a.version for a in first + second] == [5, 4, 3, 2]


# --- aliases and events


def test_an_alias_moves_and_its_moves_are_kept(registry: Registry, add: Add) -> None:
    registry.domains.add("beauty")
    for seed in (1, 2):
        add("beauty", seed)
    registry.adapters.alias("beauty@v1", "champion")
    registry.adapters.alias("beauty@v2", "champion")
    registry.adapters.alias("beauty@v2", "champion")
    assert registry.adapters.resolve("beauty@v1").aliases == ()
    moved, placed = registry.events.list(subject="beauty@champion")
    assert (moved.kind, moved.detail) == ("alias.moved", {"base": "tiny", "from": "beauty@v1", "to": "beauty@v2"})
    assert (placed.kind, placed.detail) == ("alias.set", {"base": "tiny", "to": "beauty@v1"})


def test_an_alias_cannot_look_like_a_version(registry: Registry, add: Add) -> None:
    add("spirit")
    with pytest.raises(UsageError):
        registry.adapters.alias("spirit", "v7")


def test_the_database_knows_the_current_spirit_as_the_bare_name_does(
    registry: Registry, add: Add, sql: Callable[[str], list[tuple[Any, ...]]]
) -> None:
    def current() -> list[int]:
        return [version for (version,) in sql("SELECT version FROM adapters WHERE is_current")]

    for seed in (1, 2, 3):
        add("spirit", seed)
    steps = [
        lambda: registry.adapters.alias("spirit@v1", "champion"),
        lambda: registry.adapters.alias("spirit@v2", "champion"),
        lambda: registry.adapters.archive("spirit@v2", force=True),
        lambda: registry.adapters.archive("spirit@v3"),
    ]
    for step, expected in zip([lambda: None, *steps], [3, 1, 2, 3, 1], strict=True):
        step()
        assert current() == [expected] == [registry.adapters.resolve("spirit").version]
    registry.gates.set("spirit", None, 1)
    assert current() == [], "a gate lets only a champion through"
    registry.gates.remove("spirit")
    assert current() == [1]
    registry.adapters.archive("spirit@v1")
    assert current() == []
