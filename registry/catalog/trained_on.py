"""The build that a bi-tuning was trained on in the place of its base model, found by the digest that the bi-tuning's manifest has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from sqlalchemy import select

from ..artifacts.allowlist import BUNDLE, INDEX, WEIGHTS, is_bundle, is_of_base
from ..database.connection import Database
from ..database.tables import BaseModelRow, BuildRow, DomainRow
from ..errors import BaseMismatchError
from ..store.contract import Store
from ..store.trees import FileEntry, write_manifest
from ..strict_json import read_object
from .bases import Base
from .build_queries import is_stored_merge
from .references import BI_TUNING
from .training import TrainedOn


def find_trained_on(database: Database, store: Store, folder: Path, base: Base, domain: str) -> TrainedOn | None:
    """None for what is no bi-tuning, and for one of the base model itself; no weights are read.

    Raises BaseMismatchError where no build of the domain over the base has the checkpoint; InvalidArtifactError, StoreError.
    """
    told = read_object(folder / BUNDLE) if is_bundle(folder) else {}
    digest = told.get("base")
    if told.get("kind") != BI_TUNING or not isinstance(digest, str) or digest == base.digest:
        return None
    for build, tree in _merges(database, base.name, domain):
        if store.has(tree) and as_base(store.tree(tree).files) == digest:
            return TrainedOn(build, tree, digest)
    raise BaseMismatchError(
        f"{folder}: was trained on {digest}, which is neither {base.name} nor the checkpoint of a build of {domain} over it that is here",
        hint=f"name the base that it was trained on; `reccocktail build list --domain {domain}` shows the builds, of which one must be equal to"
        " what it was trained on (`train --on`)",
    )


def as_base(files: Mapping[str, FileEntry]) -> str:
    """The digest that a merged checkpoint of these files would have if it were registered as a base model."""
    weights = {name for name in files if name.endswith(".safetensors")}
    weights |= {INDEX} if len(weights) > 1 or WEIGHTS not in weights else set()
    return write_manifest({name: entry for name, entry in files.items() if name in weights or is_of_base(name)})[
        0
    ].digest


def _merges(database: Database, base: str, domain: str) -> Iterable[tuple[str, str]]:
    """Id and digest of the domain's merges whose files are kept, the newest first, each digest once."""
    query = select(BuildRow.digest, BuildRow.id).join(BuildRow.base).join(BuildRow.domain).where(is_stored_merge())
    query = query.where(BaseModelRow.name == base, DomainRow.name == domain).order_by(BuildRow.id)
    with database.reading() as session:
        newest = {str(digest): id_ for digest, id_ in session.execute(query)}  # of equal results the newest
    return [(id_, digest) for digest, id_ in reversed(newest.items())]
