"""Base models: pretrained checkpoints, kept in the store under a name."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from ..artifacts.allowlist import base_files
from ..artifacts.facts import BaseFacts
from ..artifacts.inspect import inspect_base
from ..database.connection import Database
from ..database.tables import AdapterRow, BaseModelRow, BuildRow
from ..errors import ConflictError, NotFoundError, UsageError
from ..redaction import check_no_secret
from ..store.contract import Store
from ..store.files import folder_digest
from ..store.links import cached_repo
from . import events
from .annotations import annotation_of
from .domains import lock_new_names, refuse_if_used
from .events import EventIds
from .records import NOT_IN_JSON, Record
from .references import check_name, check_text, did_you_mean


@dataclass(frozen=True)
class Base(Record):
    """A base model. `bytes` counts its tensors; `revision` is the Hub's commit, where `source` is a Hub repo."""

    name: str
    source: str
    revision: str | None
    digest: str
    architecture: str
    dtype: str
    parameters: int
    bytes: int
    created_at: datetime
    created_by: str
    description: str | None = None
    note: str | None = None
    tags: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    created: bool = field(default=False, metadata=NOT_IN_JSON)
    skipped: tuple[str, ...] = field(default=(), metadata=NOT_IN_JSON)
    notes: tuple[str, ...] = field(default=(), metadata=NOT_IN_JSON)


class Bases:
    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store

    def add(
        self,
        name: str,
        folder: Path | str,
        *,
        source: str,
        revision: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Base:
        """Inspects and stores a model. The answer has whether it was `created` or known, and what was `skipped`.

        Raises InvalidArtifactError, UsageError, and ConflictError if the name belongs to other content.
        """
        check_name("base", name)
        for what, text in (("source", source), ("revision", revision or "")):
            check_no_secret(what, check_text(what, text))
        folder = Path(folder)
        facts = inspect_base(folder)
        files, skipped = base_files(folder, facts.files)
        tree = self._store.add_folder(
            folder, files=files, allow_links=cached_repo(folder) is not None, progress=progress
        )
        with self._database.writing() as session:
            lock_new_names(session)
            row = session.scalar(select(BaseModelRow).where(BaseModelRow.name == name))
            if row is not None and row.digest != tree.digest:
                raise ConflictError(
                    f"base model {name!r} is already there with other content ({row.digest}, not {tree.digest})",
                    hint="add it under another name",
                )
            created = row is None
            if row is None:
                row = BaseModelRow(
                    name=name,
                    source=source,
                    revision=revision,
                    digest=tree.digest,
                    architecture=facts.architecture,
                    dtype=facts.dtype,
                    parameters=facts.parameters,
                    bytes=facts.bytes,
                )
                session.add(row)
                session.flush()
                about = {"digest": tree.digest, "source": source, "revision": revision}
                events.append(session, "base.added", name, about, EventIds(base_id=row.id))
            return replace(base_of(row), created=created, skipped=skipped)

    def digest_of(self, folder: Path | str) -> str:
        """The digest that the model in `folder` would have: it is inspected as `add` does, and nothing is stored."""
        folder = Path(folder)
        return folder_digest(folder, base_files(folder, inspect_base(folder).files)[0])

    def get(self, name: str) -> Base:
        with self._database.reading() as session:
            return base_of(find_base(session, name))

    def remove(self, name: str) -> Base:
        """Takes a base model away that nothing refers to; `store gc` then frees its files. Raises ConflictError that names what refers to it."""
        with self._database.writing() as session:
            lock_new_names(session)
            row = find_base(session, name)
            refuse_if_used(
                session, f"base model {name!r} cannot be removed",
                adapters=AdapterRow.base_id == row.id, builds=BuildRow.base_id == row.id,
            )  # fmt: skip
            removed = base_of(row)
            event = events.append(session, "base.removed", name, {"digest": row.digest}, EventIds(base_id=row.id))
            row.name, row.removed_at = f"{name} (removed {row.id})", event.created_at
            session.flush()
            return removed

    def list(self) -> builtins.list[Base]:
        """By name."""
        query = select(BaseModelRow).where(BaseModelRow.removed_at.is_(None)).order_by(BaseModelRow.name)
        query = query.options(joinedload(BaseModelRow.annotation))
        with self._database.reading() as session:
            return [base_of(row) for row in session.scalars(query)]

    def only(self) -> Base:
        """The base model, where there is just one. Raises NotFoundError without any, UsageError with several."""
        bases = self.list()
        if not bases:
            raise NotFoundError("there is no base model yet", hint="run `reccocktail base add NAME SOURCE`")
        if len(bases) > 1:
            raise UsageError(
                f"there are several base models: {', '.join(b.name for b in bases)}", hint="say --base NAME"
            )
        return bases[0]

    def folder(self, base: Base) -> Path:
        return self._store.folder(base.digest)

    def facts(self, base: Base) -> BaseFacts:
        """Read from the stored headers."""
        return _facts_of(self.folder(base))


@lru_cache(maxsize=8)
def _facts_of(stored: Path) -> BaseFacts:
    """What a folder of the store holds never changes."""
    return inspect_base(stored)


def find_base(session: Session, name: str) -> BaseModelRow:
    row = session.scalar(
        select(BaseModelRow).where(BaseModelRow.name == name).options(joinedload(BaseModelRow.annotation))
    )
    if row is None:
        near = did_you_mean(name, session.scalars(select(BaseModelRow.name).where(BaseModelRow.removed_at.is_(None))))
        raise NotFoundError(f"there is no base model {name!r}{near}", hint="`reccocktail base list` shows them")
    return row


def base_of(row: BaseModelRow) -> Base:
    now = annotation_of(row)
    return Base(
        name=row.name,
        source=row.source,
        revision=row.revision,
        digest=row.digest,
        architecture=row.architecture,
        dtype=row.dtype,
        parameters=row.parameters,
        bytes=row.bytes,
        created_at=row.created_at,
        created_by=row.created_by,
        description=now.description,
        note=now.note,
        tags=now.tags,
        metrics=now.metrics,
        links=now.links,
    )
