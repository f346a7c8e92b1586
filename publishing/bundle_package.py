"""What is published of a bundle: what its manifest lists, licenses, and a card of its own. Logs and other papers stay here."""

from __future__ import annotations

from pathlib import Path

from ..engine.frozen import Frozen
from ..registry import Adapter, Base, Registry
from ..registry.artifacts.allowlist import ID_RECOMMENDER, is_legal, is_of_bundle
from ..registry.artifacts.bi_tunings import check_bi_tuning_files, read_bi_tuning_manifest
from ..registry.catalog.evaluations import Weights
from ..registry.catalog.references import PERSONALISED_LORA
from ..registry.errors import InvalidArtifactError, StoreError, UsageError, UserDataError
from ..registry.strict_json import read_object
from .bi_tuning_card import BiTuningCard, render_bi_tuning_card
from .bundle_card import BundleCard, render_bundle_card
from .measurements import evaluations_of
from .packing import CARD, Package, PublishOptions, hub_base_of, license_of, linked, stated

IN_RECOMMENDER = {"format", "kind", "trained_on", "options", "items"}  # of BERT4Rec's JSON: ids of items, and no user


def bundle_package(registry: Registry, adapter: Adapter, folder: Path, options: PublishOptions) -> Package:
    """Of a personalised LoRA or a bi-tuning. Raises UsageError, UserDataError and StoreError."""
    if options.template is not None:
        raise UsageError(f"{adapter.ref} is a {adapter.kind}, which has a card of its own: leave out --card-template")
    if adapter.kind == PERSONALISED_LORA:
        return _personalised_package(registry, adapter, folder, options)
    return _bi_tuning_package(registry, adapter, folder, options)


def _personalised_package(registry: Registry, adapter: Adapter, folder: Path, options: PublishOptions) -> Package:
    """Of a personalised LoRA: what its manifest lists and licenses. Logs and other papers may name users, and stay here."""
    users = adapter.context["bundle"]["users"]
    if users and not options.strip_users:
        raise UserDataError(
            f"{adapter.ref} holds the ids of {users} users and what was learned of each of them",
            hint="--strip-users publishes it without: all are unknown users to it then, told by their histories alone",
        )
    source = registry.adapters.folder(adapter)
    names = registry.store.tree(adapter.digest).files
    left = [name for name in names if not is_legal(name) and (users or not is_of_bundle(name))]
    if users:
        from ..engine.personal import write_without_users

        folder.rmdir()
        write_without_users(source, folder)
    known = linked(registry, adapter.digest, source, folder, left)
    base = registry.bases.get(adapter.base)
    terms, parts, notes = license_of(registry, base, [adapter], options)
    card = BundleCard(adapter, base, hub_base_of(registry, base), options.repo, terms, stripped=bool(users))
    (folder / CARD).write_text(render_bundle_card(card), encoding="utf-8")
    return stated(adapter, base, Package(folder, "", "", known, terms, parts, notes))


def _bi_tuning_package(registry: Registry, adapter: Adapter, folder: Path, options: PublishOptions) -> Package:
    source, frozen = registry.adapters.folder(adapter), Frozen.of(registry, adapter)
    _check_bi_tuning(adapter, source)
    names = registry.store.tree(adapter.digest).files
    known = linked(registry, adapter.digest, source, folder, [n for n in names if not (is_legal(n) or is_of_bundle(n))])
    base = registry.bases.get(adapter.base)
    terms, parts, notes = license_of(registry, base, [adapter], options)
    own = Weights(adapter.digest, frozen.digest)
    card = BiTuningCard(
        adapter,
        base,
        _hub_checkpoint(registry, base, frozen),
        terms,
        frozen.build,
        evaluations_of(registry, {own: adapter.ref}, own),
    )
    (folder / CARD).write_text(render_bi_tuning_card(card), encoding="utf-8")
    return stated(adapter, base, Package(folder, "", "", known, terms, parts, notes))


def _check_bi_tuning(adapter: Adapter, source: Path) -> None:
    """That its files are whole and hold no users. Raises StoreError naming the file, and UserDataError."""
    try:
        manifest = read_bi_tuning_manifest(source)
        check_bi_tuning_files(source, manifest)
        told = read_object(source / ID_RECOMMENDER[0]) if manifest.recommender else {}
    except InvalidArtifactError as error:
        raise StoreError(str(error), hint="`reccocktail store verify` lists what is damaged") from error
    if others := sorted(told.keys() - IN_RECOMMENDER):
        raise UserDataError(
            f"{adapter.ref}: {ID_RECOMMENDER[0]} has {', '.join(others)}, which may be of users; a bi-tuning holds ids of items alone",
            hint="train it again with the trainer laser",
        )


def _hub_checkpoint(registry: Registry, base: Base, frozen: Frozen) -> str | None:
    """The repository of what it was trained on: the base model's, or the newest that the build was published to."""
    if frozen.build is None:
        return hub_base_of(registry, base)
    build = registry.builds.get(frozen.build)
    return next((each.repo for each in registry.publications.standing(build.domain) if each.build == build.id), None)
