"""Item indexes of bi-tunings: what one would be made of, requests for them, and where each bi-tuning's stands.

The index embeds the items of a domain's data, so its key is over the bundle and the items alone: interactions do not make it stale. A request
stores the items as they are read, so that a worker needs neither the data nor the template.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...registry import Adapter, Build, Registry, Request
from ...registry.artifacts.bi_tunings import INDEX as INDEX_FILE
from ...registry.artifacts.bi_tunings import BiTuningManifest, read_bi_tuning_manifest
from ...registry.catalog.filters import BuildFilter
from ...registry.catalog.references import BI_TUNING, INDEX, LORA
from ...registry.digests import DigestMemory, digest_of_json
from ...registry.errors import RecCocktailError, UsageError
from ...tasks import DataError, DomainData, HistoryTemplate, Item
from ...tasks.data import READING
from ..domain_data import domain_data
from ..frozen import Frozen
from .planning import own_version

FORMAT = 1
CATALOGUE = "catalogue.jsonl"  # the items of an index, in a folder of the store
NO_ITEMS = ", so there are no items to embed"
MOST_READ = 20  # indexes of one bi-tuning that are looked at for one that can be used


@dataclass(frozen=True)
class Catalogue:
    """The items of a domain as a bi-tuning reads them. Those without a title cannot be read and are left out, `untitled` of them."""

    data: DomainData
    template: HistoryTemplate
    items: Mapping[str, Item]

    @classmethod
    def of(cls, data: DomainData, template: HistoryTemplate) -> Catalogue:
        """Raises DataError where no item has a title."""
        items = {item_id: template.shown(data.items[item_id]) for item_id in data.titled}
        if not items:
            raise DataError(
                f"no item of {data.name!r} has a title, so there is nothing to read of them",
                hint=f"`reccocktail domain show {data.name}` shows what its data has",
            )
        return cls(data, template, items)

    @property
    def untitled(self) -> int:
        return len(self.data.items) - len(self.items)

    @property
    def digest(self) -> str:
        return self.template.catalogue_digest(self.items)


def request_index(registry: Registry, row: Adapter, *, force: bool = False) -> Request:
    """Ask for the index of a bi-tuning over its domain's items; an equal one that is queued, running or succeeded is returned.

    Raises UsageError without data, DataError where no item has a title.
    """
    manifest = _manifest(registry, row)
    catalogue = Catalogue.of(_data(registry, row), HistoryTemplate.model_validate(manifest.template))
    frozen, items = Frozen.of(registry, row), catalogue.digest
    key = _key(frozen, row, items)
    inputs: dict[str, Any] = {
        "base": {"name": frozen.base, "digest": frozen.digest},
        "adapters": [{"role": BI_TUNING, "ref": row.ref, "digest": row.digest}],
        "bundle": row.digest,
        "items": {
            "digest": items,
            "count": len(catalogue.items),
            "untitled": catalogue.untitled,
            "width": manifest.width,
        },
        "data": {"path": registry.domains.get(_domain(row)).data, "digest": catalogue.data.digest},
        "template": {"name": catalogue.template.name, "digest": catalogue.template.digest},
    }
    if frozen.build is not None:
        inputs["on"] = frozen.build
    if not registry.builds.has_reusable_build(key, force=force):
        inputs["catalogue"] = {"digest": _keep(registry, catalogue)}
    recipe = {"index": FORMAT}
    return registry.builds.request(
        _domain(row), row.base, key, recipe, inputs, force=force, own_recipe=False, kind=INDEX
    )


@dataclass(frozen=True)
class IndexFreshness:
    """Whether the index that answers for a bi-tuning is of the items that its domain has now.

    `state` is `fresh`, `stale`, or `blocked` with why that cannot be known. `build` has the index; None means the one inside the bundle. `key` is that of a build of the present items.
    """

    adapter: Adapter
    state: Literal["fresh", "stale", "blocked"]
    reasons: tuple[str, ...] = ()
    build: Build | None = None
    key: str | None = None


def indexes_by_domain(registry: Registry, domain: str | None = None) -> dict[str, tuple[IndexFreshness, ...]]:
    """By domain, of its newest bi-tuning for each base: of all domains that have one, or of one domain."""
    rows = [row for row in registry.adapters.current(BI_TUNING) if domain in (None, row.domain)]
    found: dict[str, tuple[IndexFreshness, ...]] = {}
    for each in _freshness(registry, sorted(rows, key=lambda row: (_domain(row), row.base))):
        found[_domain(each.adapter)] = (*found.get(_domain(each.adapter), ()), each)
    return found


def index_freshness(registry: Registry, row: Adapter) -> IndexFreshness:
    """Of one version, be it the newest or not."""
    (found,) = _freshness(registry, [row])
    return found


def _freshness(registry: Registry, rows: Sequence[Adapter]) -> list[IndexFreshness]:
    now = [_items_now(registry, row) for row in rows]
    keys = [
        None if isinstance(items, RecCocktailError) else _key(Frozen.of(registry, row), row, items)
        for row, items in zip(rows, now, strict=True)
    ]
    built = registry.builds.succeeded_with_keys(key for key in keys if key)
    return [
        _judged(registry, row, items, key, built.get(key or ""))
        for row, items, key in zip(rows, now, keys, strict=True)
    ]


def _judged(
    registry: Registry, row: Adapter, items: str | RecCocktailError, key: str | None, current: Build | None
) -> IndexFreshness:
    """`current` is the build of the items that there are now."""
    if isinstance(items, RecCocktailError):
        why = f"index of {row.ref}: {items}"
        return IndexFreshness(row, "blocked", (why,), next(indexes_of(registry, row), None))
    if current is not None and registry.store.has(current.stored_digest(INDEX)):
        return IndexFreshness(row, "fresh", (), current, key)
    if row.context.get("bundle", {}).get("items") == items:
        return IndexFreshness(row, "fresh", key=key)
    why = f"index of {row.ref}: items are new, changed or gone"
    return IndexFreshness(row, "stale", (why,), next(indexes_of(registry, row), None), key)


def indexes_of(registry: Registry, row: Adapter) -> Iterator[Build]:
    """The builds of a bi-tuning's index that can be used, the newest first."""
    wanted = BuildFilter(domain=row.domain, kind=INDEX, status="succeeded", adapter=row)
    for build in registry.builds.list(wanted, sort="finished", limit=MOST_READ):
        if build.collected_at is None and registry.store.has(build.stored_digest(INDEX)):
            yield build


def stale_indexes(registry: Registry) -> list[IndexFreshness]:
    """Those that a build would make fresh."""
    return [each for some in indexes_by_domain(registry).values() for each in some if each.state == "stale"]


def index_file(registry: Registry, row: Adapter, build: Build | None) -> Path:
    """Of a build, or inside the bundle."""
    if build is None:
        return registry.adapters.folder(row) / INDEX_FILE
    return registry.store.folder(build.stored_digest(INDEX)) / INDEX_FILE


def bi_tuning_of(registry: Registry, domain: str, ref: str | None = None, base: str | None = None) -> Adapter:
    """The bi-tuning that is named, or the domain's newest. Raises NotFoundError, WrongKindError, UsageError for one of another domain."""
    row = registry.adapters.resolve(ref or domain, base=base, kind=BI_TUNING)
    if row.domain != domain:
        raise UsageError(
            f"{row.ref} is of {row.domain!r}, not of {domain!r}",
            hint=f"reccocktail adapter list --domain {domain} --kind {BI_TUNING}",
        )
    return row


def _manifest(registry: Registry, row: Adapter) -> BiTuningManifest:
    return read_bi_tuning_manifest(registry.adapters.folder(row))


def has_only_bi_tunings(registry: Registry, domain: str, base: str | None = None) -> bool:
    """Whether an index is all that can be built for the domain. Raises NotFoundError."""
    registry.domains.get(domain)
    active = [row for row in registry.adapters.versions([domain]) if row.archived_at is None]
    kinds = {row.kind for row in active if base in (None, row.base)}
    return BI_TUNING in kinds and LORA not in kinds


def read_catalogue(folder: Path) -> dict[str, Item]:
    """By id, the items that a request stored."""
    with (folder / CATALOGUE).open(encoding="utf-8") as lines:
        return {item_id: Item(item_id, title, fields) for item_id, title, fields in map(json.loads, lines)}


def _keep(registry: Registry, catalogue: Catalogue) -> str:
    with registry.store.staging("catalogue") as folder:
        _write(folder / CATALOGUE, [catalogue.items[item_id] for item_id in sorted(catalogue.items)])
        return registry.store.adopt(folder).digest


def _write(path: Path, items: Sequence[Item]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps([item.item_id, item.title, dict(item.fields)], sort_keys=True) + "\n")


def _key(frozen: Frozen, row: Adapter, items: str) -> str:
    """SHA-256 over all that the embeddings depend on: the bundle names its weights and template, and its frozen checkpoint."""
    about = {"domain": row.domain, "base": [frozen.base, frozen.digest], "bundle": row.digest, "items": items}
    return digest_of_json({"index": FORMAT, **about})


def _items_now(registry: Registry, row: Adapter) -> str | RecCocktailError:
    """The digest of the items as the bi-tuning reads them, remembered until a file of the data changes; or why there is none."""
    data, template = registry.domains.get(_domain(row)).data, row.context.get("bundle", {}).get("template")
    if data is None:
        return _no_data(row)

    def compute() -> str:
        template = HistoryTemplate.model_validate(_manifest(registry, row).template)
        return Catalogue.of(_data(registry, row), template).digest

    place = registry.settings.own_folder("cache") / "data" / f"items-{str(template).removeprefix('sha256:')[:16]}"
    memory = DigestMemory(place, version=own_version("reccocktail"), reading=READING, template=template)
    try:
        return memory.digest(registry.data_folder(data), compute)
    except RecCocktailError as error:
        return error


def _data(registry: Registry, row: Adapter) -> DomainData:
    return domain_data(registry, _domain(row), needed=NO_ITEMS)


def _no_data(row: Adapter) -> UsageError:
    hint = f"reccocktail domain add {row.domain} --data DIR"
    return UsageError(f"domain {row.domain!r} has no data{NO_ITEMS}", hint=hint)


def _domain(row: Adapter) -> str:
    assert row.domain is not None
    return row.domain
