"""Personalised LoRAs in the registry: a kind of their own, numbered with the others and never taken for an ingredient."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reccocktail.registry import Adapter, Base, Registry
from reccocktail.registry.artifacts.sources import find_adapter_source
from reccocktail.registry.catalog.adapters import AdapterFilter
from reccocktail.registry.catalog.references import PERSONALISED_LORA, Reference
from reccocktail.registry.catalog.registration import Checks
from reccocktail.registry.database import migrate
from reccocktail.registry.errors import (
    BaseMismatchError,
    InvalidArtifactError,
    NotFoundError,
    UsageError,
    WrongKindError,
)

Make = Callable[..., Path]


@pytest.fixture
def bundle(registry: Registry, base: Base, make_bundle: Make, tmp_path: Path) -> Path:
    registry.domains.add("beauty")
    return make_bundle(registry, tmp_path / "bundle")


def register(registry: Registry, base: Base, folder: Path) -> Adapter:
    return registry.adapters.add(folder, base=base, role="ingredient", domain="beauty")


def test_a_bundle_is_a_version_of_another_kind_that_no_bare_name_and_no_mix_means(
    registry: Registry, base: Base, add: Callable[..., Adapter], bundle: Path, sql: Any, make_bundle: Make, tmp_path
):
    adapters = registry.adapters
    assert find_adapter_source(str(bundle)).folder == bundle
    (bundle / "LICENSE").write_text("MIT")
    (bundle / "README.md").write_text("# ours")
    first = replace(register(registry, base, bundle), created=False)
    assert (first.ref, first.kind, first.rank, first.alpha) == ("beauty@v1", PERSONALISED_LORA, 2, 16)
    assert {*registry.store.tree(first.digest).files} == {path.name for path in bundle.iterdir()}
    said = first.context["bundle"]
    assert (said["metas"], said["form"], said["target_dependent"], said["users"]) == (3, "sum", False, 2)
    assert (said["base"], said["trained_on"]) == (base.digest, "sha256:rows")

    # without a plain LoRA the domain has no ingredient, whatever else it has
    for ref in ("beauty", "beauty@v1"):
        with pytest.raises(WrongKindError) as refused:
            adapters.resolve(ref)
        assert "personalise beauty@v1" in (refused.value.hint or "")
        assert adapters.resolve(ref, kind=None) == adapters.resolve(ref, kind=PERSONALISED_LORA) == first
    with pytest.raises(WrongKindError):
        adapters.resolve("beauty", at=first.created_at)
    assert adapters.resolve("beauty", at=first.created_at, kind=None).ref == "beauty@v1"
    assert adapters.current() == []
    assert adapters.digests([Reference("beauty"), Reference("beauty", version=1)], base="tiny") == {}
    with pytest.raises(WrongKindError):
        adapters.alias("beauty@v1", "champion")
    adapters.alias("beauty@v1", "best")
    assert adapters.resolve("beauty@best", kind=None).ref == "beauty@v1"

    # numbers are shared, and kinds pass each other by
    plain, spirit = add("beauty", 1), add("spirit", 2)
    assert plain.ref == "beauty@v2"
    newest = register(registry, base, make_bundle(registry, tmp_path / "another", seed=2))
    assert (newest.ref, newest.created) == ("beauty@v3", True)
    assert [adapters.resolve("beauty", kind=kind).version for kind in ("lora", None, PERSONALISED_LORA)] == [2, 2, 3]
    assert {each.ref for each in adapters.current()} == {"spirit@v1", "beauty@v2"}
    with pytest.raises(WrongKindError):
        adapters.resolve("beauty@v2", kind=PERSONALISED_LORA)
    assert [a.ref for a in adapters.list(AdapterFilter(kind=PERSONALISED_LORA))] == ["beauty@v3", "beauty@v1"]
    assert [a.ref for a in adapters.list(AdapterFilter(kind="lora", domain="beauty"))] == ["beauty@v2"]
    (bundle / "README.md").write_text("# another card")
    again = register(registry, base, bundle)
    assert (again.ref, again.created) == ("beauty@v1", False)
    adapters.archive("beauty@v2")
    with pytest.raises(WrongKindError):
        adapters.resolve("beauty")
    with pytest.raises(NotFoundError):
        adapters.resolve("beauty", base="tiny", kind="bi-tuning")

    # and the database holds it, however the statement came to it
    inputs = {"adapters": [{"ref": each.ref, "digest": each.digest} for each in (spirit, newest)]}
    with pytest.raises(Exception, match="only plain LoRAs are mixed"):
        registry.builds.request("beauty", base.name, "key", {}, inputs)
    assert registry.builds.list() == []
    event = "INSERT INTO events (kind, subject, detail, base_id, domain_id, adapter_id, alias, created_at, created_by)"
    for statement in (
        "UPDATE adapters SET kind = 'lora' WHERE version = 3",
        "UPDATE adapters SET kind = 'bi-tuning' WHERE version = 2",
        f"{event} SELECT 'alias.set', 'x', '{{}}', base_id, domain_id, id, 'champion', created_at, 'ann' FROM adapters WHERE version = 3",
    ):
        with pytest.raises(sql.refusals):
            sql(statement)
    columns = "base_id, domain_id, role, version, digest, rank, alpha, target_modules, tensors, bytes, metrics, tags, context, is_current, created_at, created_by"
    for kind in ("personalised-lora", "nonsense"):
        with pytest.raises(sql.refusals):
            sql(
                f"INSERT INTO adapters (kind, {columns}) SELECT '{kind}', {columns.replace('version', '2').replace('digest', repr('other'))} FROM adapters WHERE role = 'spirit'"
            )


def test_a_bundle_that_is_damaged_or_of_another_base_is_not_registered(
    registry: Registry, base: Base, bundle: Path, make_base: Make, make_bundle: Make, tmp_path: Path
):
    other = registry.bases.add("other", make_base(tmp_path / "other", seed=5), source="org/other")
    with pytest.raises(BaseMismatchError):
        registry.adapters.add(
            bundle, base=other, role="ingredient", domain="beauty", checks=Checks(allow_base_mismatch=True)
        )
    with pytest.raises(UsageError):
        registry.adapters.add(bundle, base=base, role="spirit")
    for path in sorted(bundle.iterdir()):
        copy = shutil.copytree(bundle, tmp_path / f"cut-{path.name}")
        (copy / path.name).write_bytes(path.read_bytes()[:-4])
        with pytest.raises(InvalidArtifactError):
            register(registry, base, copy)
        (copy / path.name).unlink()
        with pytest.raises(InvalidArtifactError):
            register(registry, base, copy)
    for name in ("run.py", "vocab.txt", "adapter_config.json"):
        copy = shutil.copytree(bundle, tmp_path / f"with-{name}")
        (copy / name).write_text("{}")
        with pytest.raises(InvalidArtifactError, match=name):
            register(registry, base, copy)
    wrong = {"metas": 4, "rank": 1, "modules": ["model.layers.9.self_attn.q_proj"], "width": 9}
    for name, value in wrong.items():
        copy = shutil.copytree(bundle, tmp_path / f"other-{name}")
        manifest = json.loads((copy / "bundle.json").read_text())
        manifest["gates"][name] = value
        (copy / "bundle.json").write_text(json.dumps(manifest))
        with pytest.raises(InvalidArtifactError):
            register(registry, base, copy)
    assert registry.adapters.list() == []
    row = register(registry, base, bundle)
    assert registry.adapters.inspected(row).tensors == row.tensors
    kept = registry.adapters.folder(row) / "gated_lora.safetensors"
    kept.chmod(0o644)
    kept.write_bytes(kept.read_bytes()[:-1] + b"\1")
    with pytest.raises(InvalidArtifactError):
        registry.adapters.inspected(row)


def test_going_back_is_refused_while_bundles_are_there(
    registry: Registry, base: Base, add: Callable[..., Adapter], bundle: Path
):
    plain = add("beauty", 1)
    url = registry.settings.database_url
    migrate.downgrade(url, "0006", allow_loss=True)
    migrate.upgrade(url)
    assert migrate.check(url) == migrate._head()
    assert registry.adapters.resolve("beauty") == replace(plain, created=False, notes=())
    assert plain.kind == "lora"
    register(registry, base, bundle)
    with pytest.raises(UsageError, match="personalised-lora"):
        migrate.downgrade(url, "0006", allow_loss=True)
    assert migrate.check(url) == migrate._head()
