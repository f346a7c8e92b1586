"""What a registry holds, as the file that `apply` reads: applied to an empty registry it gives the same digests, versions, aliases and policies."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from ..artifacts.allowlist import ADAPTER_CONFIG
from ..catalog.adapters import Adapter
from ..catalog.bases import Base
from ..catalog.domains import Domain
from ..catalog.recipes import Recipes
from ..catalog.references import LORA
from ..errors import InvalidArtifactError
from ..registry import Registry
from ..store.trees import is_tree
from ..strict_json import read_object
from .annotating import about
from .policies import policies
from .webhooks import webhooks


def export(registry: Registry, *, with_webhooks: bool = True) -> dict[str, Any]:
    """The file's content as plain JSON. Adapters come oldest first, so that they get the same numbers again."""
    bases = registry.bases.list()
    content = {
        "bases": {row.name: _base(registry, row) for row in bases},
        "templates": _contents(registry.templates),
        "recipes": _contents(registry.recipes),
        "domains": {row.name: _domain(registry, row) for row in registry.domains.list()},
        "adapters": [_adapter(registry, row, bases) for row in registry.adapters.versions()],
        "policies": policies(registry),
        "webhooks": webhooks(registry) if with_webhooks else {},
    }
    return {section: entries for section, entries in content.items() if entries}


def to_yaml(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)


def to_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


class _Plain(yaml.SafeDumper):
    """Without anchors, which `apply` refuses: values that are the same object are written out each time."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, {}, [], False)}


def _base(registry: Registry, row: Base) -> dict[str, Any]:
    folder = registry.store.local(row.digest)
    return _given(
        source=row.source, revision=row.revision, files=folder and str(folder), digest=row.digest, **about(row)
    )


def _contents(versions: Recipes) -> dict[str, list[dict[str, Any]]]:
    """What the versions of each name say, the oldest first."""
    return {row.name: [dict(each.content) for each in reversed(versions.log(row.name))] for row in versions.list()}


def _domain(registry: Registry, row: Domain) -> dict[str, Any]:
    """What was uploaded has the folder in the store beside its digest."""
    folder = registry.store.local(row.data) if row.data is not None and is_tree(row.data) else None
    return _given(
        title=row.title,
        data=row.data,
        files=folder and str(folder),
        trainer=row.trainer,
        recipe=row.recipe,
        **about(row),
    )


def _adapter(registry: Registry, row: Adapter, bases: list[Base]) -> dict[str, Any]:
    of = {"spirit": True} if row.domain is None else {"domain": row.domain}
    base = next(base for base in bases if base.name == row.base)
    folder, training = registry.store.local(row.digest), row.training
    return of | _given(
        base=row.base,
        version=row.version,
        source=training.hub_repo,
        revision=row.context.get("hub_commit"),
        files=folder and str(folder),
        digest=row.digest,
        aliases=[*row.aliases],
        archived=row.archived_at is not None,
        **about(row),
        allow_base_mismatch=_names_another(folder, row, base),
        allow_partial=bool(training.lacking),
        context=dict(row.context),
    )


def _names_another(folder: Path | None, row: Adapter, base: Base) -> bool:
    """Whether it was registered although it names another base model; `folder` is that in the store, where it is on this machine."""
    if folder is None or row.kind != LORA:
        return False
    with suppress(InvalidArtifactError):
        name = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        return bool(name) and name not in (base.name, base.source)
    return False
