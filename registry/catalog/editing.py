"""Edits of metadata: tags, notes, descriptions, links and metrics of adapter versions, domains, base models and builds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sqlalchemy.orm import Session

from ..database.connection import Database
from ..database.tables import BaseModelRow, BuildRow
from . import annotations
from .annotations import Edit, annotation_of
from .bases import Base, base_of, find_base
from .build_queries import find_build, find_build_locked
from .domains import Domain, domain_of, find_ingredient_domain, lock_new_names
from .lookup import find_adapter_locked, ref_of
from .records import NOT_IN_JSON, Record
from .references import Reference
from .versions import Adapter, adapter_of


@dataclass(frozen=True)
class BuildAnnotation(Record):
    """What people wrote of a build."""

    id: str
    description: str | None
    note: str | None
    tags: tuple[str, ...]
    metrics: Mapping[str, float]
    links: Mapping[str, str]
    notes: tuple[str, ...] = field(default=(), metadata=NOT_IN_JSON)


class Edits:
    """Every edit is one event, `<object>.edited`, with what it changed from and to; one that changes nothing has no event.

    All raise NotFoundError for what is not there, and UsageError for what cannot be kept or is not there to be removed. `notes` of the
    answer says what was taken out because it looks like a secret.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def adapter(self, ref: str | Reference, change: Edit, *, base: str | None = None) -> Adapter:
        change, remarks = change.checked()
        with self._database.writing() as session:
            row = find_adapter_locked(session, ref, base)
            annotations.edit(session, row, ref_of(row), change, {"base": row.base.name})
            return replace(adapter_of(row), notes=remarks)

    def domain(self, name: str, change: Edit) -> Domain:
        change, remarks = change.checked()
        with self._database.writing() as session:
            row = find_ingredient_domain(session, name, lock=True)
            annotations.edit(session, row, name, change)
            return replace(domain_of(row), notes=remarks)

    def base(self, name: str, change: Edit) -> Base:
        change, remarks = change.checked()
        with self._database.writing() as session:
            row = self._base_locked(session, name)
            annotations.edit(session, row, name, change)
            return replace(base_of(row), notes=remarks)

    def build(self, build_id: str, change: Edit) -> BuildAnnotation:
        """By id, or the beginning of one."""
        change, remarks = change.checked()
        with self._database.writing() as session:
            row = find_build_locked(session, build_id)
            annotations.edit(session, row, row.id, change, {"domain": row.domain.name})
            return replace(_of_build(row), notes=remarks)

    def of_build(self, build_id: str) -> BuildAnnotation:
        with self._database.reading() as session:
            return _of_build(find_build(session, build_id))

    def _base_locked(self, session: Session, name: str) -> BaseModelRow:
        lock_new_names(session)
        return find_base(session, name)


def _of_build(row: BuildRow) -> BuildAnnotation:
    now = annotation_of(row)
    return BuildAnnotation(row.id, now.description, now.note, now.tags, now.metrics, now.links)
