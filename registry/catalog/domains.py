"""Domains: what is recommended in, and where its data, trainer and recipe are."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, false, func, select
from sqlalchemy.orm import Session, joinedload

from ..database.connection import Database
from ..database.tables import AdapterRow, BuildInputRow, BuildRow, DomainRow, EvaluationRow, RecipeRow, RecipeVersionRow
from ..errors import ConflictError, NotFoundError, UsageError
from ..redaction import check_no_secret, redacted
from . import events
from .annotations import annotation_of
from .content_changes import differences
from .events import EventIds
from .records import NOT_IN_JSON, Record
from .references import SPIRIT, Reference, check_name, check_text, near_name

NAMED = 5  # so many rows that refer to one are named in a refusal


@dataclass(frozen=True)
class Domain(Record):
    """`data` is the path of a folder or, of what was uploaded, the digest of a tree of the store; `Registry.data_folder` reads either."""

    name: str
    title: str
    data: str | None
    trainer: str | None
    recipe: str | None
    created_at: datetime
    created_by: str
    description: str | None = None
    note: str | None = None
    tags: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=(), metadata=NOT_IN_JSON)
    created: bool = field(default=False, compare=False, metadata=NOT_IN_JSON)
    changed: tuple[Mapping[str, Any], ...] = field(default=(), compare=False, metadata=NOT_IN_JSON)


class Domains:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        name: str,
        *,
        title: str | None = None,
        data: str | None = None,
        trainer: str | None = None,
        recipe: str | None = None,
    ) -> Domain:
        """Adds the domain, or changes what is given of one that is there; None leaves a field as it is.

        The answer has whether it was `created`, and of one that was there what is `changed`: `key`, `before` and `after` of each field.
        """
        check_name("domain", name)
        fields = {"title": title and redacted(title), "data": data, "trainer": trainer, "recipe": recipe}
        given = {what: check_text(what, value) for what, value in fields.items() if value is not None}
        for what in given.keys() - {"title"}:
            check_no_secret(what, given[what])
        with self._database.writing() as session:
            lock_new_names(session)
            row = session.scalar(select(DomainRow).where(DomainRow.name == name).with_for_update(key_share=True))
            about: builtins.list[dict[str, Any]] = []
            if created := row is None:
                _expect_kept(session, recipe)
                row = DomainRow(name=name, role="ingredient", **fields | {"title": fields["title"] or name})
                session.add(row)
                session.flush()
                events.append(session, "domain.added", name, given, EventIds(domain_id=row.id))
            elif changed := {what: value for what, value in given.items() if getattr(row, what) != value}:
                _expect_kept(session, changed.get("recipe"))
                about = differences({what: getattr(row, what) for what in changed}, changed)
                events.append(session, "domain.changed", name, changed, EventIds(domain_id=row.id))
                for what, value in changed.items():
                    setattr(row, what, value)
            return replace(domain_of(row), created=created, changed=tuple(about))

    def get(self, name: str) -> Domain:
        with self._database.reading() as session:
            return domain_of(find_ingredient_domain(session, name))

    def rename(self, name: str, new: str) -> Domain:
        """Gives the domain another name; its versions, aliases and log stay with it.

        Raises ConflictError for a name that is taken, and where builds refer to the domain or its versions: these have its name in what
        they are made of, and in their cards.
        """
        check_name("domain", new)
        with self._database.writing() as session:
            lock_new_names(session)
            row = find_ingredient_domain(session, name, lock=True)
            if new != name:
                if session.scalar(select(DomainRow.id).where(DomainRow.name == new)) is not None:
                    raise ConflictError(f"there is a domain {new!r} already", hint="choose another name")
                versions = select(AdapterRow.id).where(AdapterRow.domain_id == row.id)
                mixed = select(BuildInputRow.build_id).where(BuildInputRow.adapter_id.in_(versions))
                refuse_if_used(
                    session,
                    f"domain {name!r} cannot be renamed",
                    builds=(BuildRow.domain_id == row.id) | BuildRow.id.in_(mixed),
                )
                events.append(session, "domain.renamed", new, {"from": name, "to": new}, EventIds(domain_id=row.id))
                row.name = new
                session.flush()
            return domain_of(row)

    def remove(self, name: str) -> Domain:
        """Takes a domain away that nothing refers to; its name is free again. Raises ConflictError that names what refers to it."""
        with self._database.writing() as session:
            lock_new_names(session)
            row = find_ingredient_domain(session, name, lock=True)
            refuse_if_used(
                session, f"domain {name!r} cannot be removed",
                adapters=AdapterRow.domain_id == row.id, builds=BuildRow.domain_id == row.id,
                evaluations=EvaluationRow.domain_id == row.id,
            )  # fmt: skip
            removed = domain_of(row)
            event = events.append(session, "domain.removed", name, {"title": row.title}, EventIds(domain_id=row.id))
            row.name, row.removed_at = f"{name} (removed {row.id})", event.created_at
            session.flush()
            return removed

    def list(self) -> builtins.list[Domain]:
        """By name, without the built-in one that spirits live under."""
        present = (DomainRow.role != SPIRIT, DomainRow.removed_at.is_(None))
        query = select(DomainRow).where(*present).order_by(DomainRow.name).options(joinedload(DomainRow.annotation))
        with self._database.reading() as session:
            return [domain_of(row) for row in session.scalars(query)]


def refuse_if_used(
    session: Session,
    what: str,
    *,
    builds: ColumnElement[bool],
    adapters: ColumnElement[bool] | None = None,
    evaluations: ColumnElement[bool] | None = None,
) -> None:
    """Raises ConflictError if there are adapter versions, builds or evaluations of those, archived and cancelled ones included."""
    adapters = false() if adapters is None else adapters
    evaluations = false() if evaluations is None else evaluations
    query = select(DomainRow.name, AdapterRow.version).join(DomainRow, DomainRow.id == AdapterRow.domain_id)
    versions = session.execute(query.where(adapters).order_by(AdapterRow.id.desc()).limit(NAMED))
    named = [str(Reference(name, version=version)) for name, version in versions]
    ids = [*session.scalars(select(BuildRow.id).where(builds).order_by(BuildRow.id.desc()).limit(NAMED))]
    measured = select(EvaluationRow.label).where(evaluations).order_by(EvaluationRow.id.desc()).limit(NAMED)
    counts = (
        ("adapter version", named, select(func.count()).select_from(AdapterRow).where(adapters)),
        ("build", ids, select(func.count()).select_from(BuildRow).where(builds)),
        (
            "evaluation",
            [*session.scalars(measured)],
            select(func.count()).select_from(EvaluationRow).where(evaluations),
        ),
    )
    referring = []
    for noun, shown, query in counts:
        if shown:
            number = session.scalar(query) or 0
            more = ", …" if number > len(shown) else ""
            referring.append(f"{number} {noun}{'' if number == 1 else 's'} ({', '.join(shown)}{more})")
    if referring:
        raise ConflictError(
            f"{what}, because these refer to it: {'; '.join(referring)}",
            hint="versions and builds are kept for good; add another domain or base model beside it",
        )


def _expect_kept(session: Session, recipe: str | None) -> None:
    """Raises UsageError for a recipe that is not one that ships, by its name, nor a version of the registry's."""
    if recipe is None or not set("@./\\") & set(recipe):
        return
    name, _, version = recipe.partition("@v")
    there = select(RecipeVersionRow.id).join(RecipeRow).where(RecipeRow.kind == "recipe", RecipeRow.name == name)
    if not version.isdecimal() or session.scalar(there.where(RecipeVersionRow.version == int(version))) is None:
        raise UsageError(
            f"the recipe of a domain is one that ships, or a version in the registry such as NAME@v1, not {recipe!r}",
            hint="`reccocktail recipe add NAME FILE` reads a file in",
        )


def lock_new_names(session: Session) -> None:
    """Makes writers that are about to give a name wait for each other: there is no row yet that they could lock."""
    find_domain(session, SPIRIT, lock=True)


def find_domain(session: Session, name: str, *, lock: bool = False) -> DomainRow:
    """The row, also that of `spirit`; `lock` makes writers of its versions wait for each other."""
    query = select(DomainRow).where(DomainRow.name == name)
    # key_share: rows that merely refer to the domain can be written meanwhile
    query = query.with_for_update(key_share=True) if lock else query.options(joinedload(DomainRow.annotation))
    row = session.scalar(query)
    if row is None:
        near = near_name(name, session.scalars(select(DomainRow.name).where(DomainRow.removed_at.is_(None))))
        if near is not None:
            raise NotFoundError(
                f"there is no domain {name!r}; did you mean {near!r}?",
                hint=f"run the same command with {near}; `reccocktail domain list` shows all domains",
            )
        raise NotFoundError(f"there is no domain {name!r}", hint=f"run `reccocktail domain add {name} --data DIR`")
    return row


def find_ingredient_domain(session: Session, name: str, *, lock: bool = False) -> DomainRow:
    """As `find_domain`, without the built-in one that spirits live under."""
    row = find_domain(session, name, lock=lock)
    if row.role == SPIRIT:
        raise NotFoundError("'spirit' names the base spirit, not a domain")
    return row


def domain_of(row: DomainRow) -> Domain:
    now = annotation_of(row)
    return Domain(
        row.name, row.title, row.data, row.trainer, row.recipe, row.created_at, row.created_by,
        now.description, now.note, now.tags, now.metrics, now.links,
    )  # fmt: skip
