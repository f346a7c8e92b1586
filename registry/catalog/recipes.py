"""Recipes and prompt templates: content under a name, version by version. What the content means is the engine's to say."""

from __future__ import annotations

import builtins
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from ..database.connection import Database
from ..database.tables import DomainRow, RecipeRow, RecipeVersionRow
from ..digests import digest_of_json
from ..errors import InvalidReferenceError, NotFoundError, UsageError
from ..redaction import check_no_secret, redacted
from . import events
from .domains import lock_new_names
from .events import EventIds
from .records import NOT_IN_JSON, Record
from .references import Reference, check_name, check_text, did_you_mean

Kind = Literal["recipe", "template"]


@dataclass(frozen=True)
class RecipeVersion(Record):
    """What a recipe or template says in one version; `created` is whether the call that answers with it made it."""

    ref: str
    name: str
    version: int
    digest: str
    content: Mapping[str, Any]
    note: str | None
    created_at: datetime
    created_by: str
    created: bool = field(default=False, metadata=NOT_IN_JSON)


class Recipes:
    """The recipes, or the templates, of a registry."""

    def __init__(self, database: Database, kind: Kind) -> None:
        self._database = database
        self.kind: Kind = kind

    def add(
        self, name: str, content: Mapping[str, Any], *, note: str | None = None, read_from: str | None = None
    ) -> RecipeVersion:
        """Adds the content as the name's next version; content that a version has already is answered with that version.

        `read_from` is where it came from, for the event. Raises UsageError for a name or note that cannot be kept.
        """
        check_name(self.kind, name)
        note = redacted(check_text("note", note)) if note else None
        for text in _texts(content):
            check_no_secret(self.kind, check_text(self.kind, text))
        digest = digest_of_json(content)
        with self._database.writing() as session:
            lock_new_names(session)
            recipe = session.scalar(select(RecipeRow).where(RecipeRow.kind == self.kind, RecipeRow.name == name))
            if recipe is None:
                recipe = RecipeRow(kind=self.kind, name=name)
                session.add(recipe)
                session.flush()
            of_it = RecipeVersionRow.recipe_id == recipe.id
            row = session.scalar(select(RecipeVersionRow).where(of_it, RecipeVersionRow.digest == digest))
            if row is not None:
                return _version(row)
            version = 1 + (session.scalar(select(func.max(RecipeVersionRow.version)).where(of_it)) or 0)
            about = {"digest": digest} | ({"read_from": read_from} if read_from else {})
            events.append(session, f"{self.kind}.added", f"{name}@v{version}", about, EventIds())
            row = RecipeVersionRow(
                recipe_id=recipe.id, version=version, digest=digest, content=dict(content), note=note
            )
            session.add(row)
            session.flush()
            return replace(_version(row), created=True)

    def get(self, ref: str) -> RecipeVersion:
        """`NAME@vN`, or the newest of `NAME`. Raises NotFoundError, InvalidReferenceError."""
        wanted = self._parsed(ref)
        query = select(RecipeVersionRow).join(RecipeRow).where(self._named(wanted.name))
        if wanted.version is not None:
            query = query.where(RecipeVersionRow.version == wanted.version)
        with self._database.reading() as session:
            row = session.scalar(query.order_by(RecipeVersionRow.version.desc()).limit(1))
            if row is None:
                raise self._missing(session, wanted)
            return _version(row)

    def list(self) -> builtins.list[RecipeVersion]:
        """The newest version of each, by name."""
        newest = (
            select(func.max(RecipeVersionRow.id))
            .join(RecipeRow)
            .where(RecipeRow.kind == self.kind)
            .group_by(RecipeVersionRow.recipe_id)
        )
        query = select(RecipeVersionRow).join(RecipeRow).where(RecipeVersionRow.id.in_(newest)).order_by(RecipeRow.name)
        with self._database.reading() as session:
            return [_version(row) for row in session.scalars(query)]

    def log(self, name: str) -> builtins.list[RecipeVersion]:
        """All versions, the newest first. Raises NotFoundError."""
        wanted = self._parsed(name)
        query = (
            select(RecipeVersionRow)
            .join(RecipeRow)
            .where(self._named(wanted.name))
            .order_by(RecipeVersionRow.version.desc())
        )
        with self._database.reading() as session:
            rows = [_version(row) for row in session.scalars(query)]
            if not rows:
                raise self._missing(session, Reference(wanted.name))
        return rows

    def contents(self, refs: Collection[str]) -> dict[str, Mapping[str, Any]]:
        """What each of these versions says, by `NAME@vN`, in one query; those that are not there are left out."""
        wanted = {ref for ref in refs if "@v" in ref}
        if not wanted:
            return {}
        names = {ref.partition("@")[0] for ref in wanted}
        query = select(RecipeVersionRow).join(RecipeRow).where(RecipeRow.kind == self.kind)
        if len(names) <= 500:  # of more, a database would count the parameters
            query = query.where(RecipeRow.name.in_(names))
        with self._database.reading() as session:
            found = {row.ref: row.content for row in map(_version, session.scalars(query))}
        return {ref: content for ref, content in found.items() if ref in wanted}

    def users(self) -> dict[str, builtins.list[str]]:
        """By `NAME@vN`, the domains whose own recipe it is, by name."""
        query = select(DomainRow.recipe, DomainRow.name).where(DomainRow.recipe.is_not(None)).order_by(DomainRow.name)
        found: dict[str, builtins.list[str]] = {}
        with self._database.reading() as session:
            for ref, domain in session.execute(query):
                found.setdefault(str(ref), []).append(domain)
        return found

    def _named(self, name: str) -> ColumnElement[bool]:
        return (RecipeRow.kind == self.kind) & (RecipeRow.name == name)

    def _parsed(self, ref: str) -> Reference:
        hint = f"write NAME or NAME@vN; `reccocktail {self.kind} list` shows all"
        try:
            found = Reference.parse(ref)
        except InvalidReferenceError as error:
            raise UsageError(f"{ref!r} does not name a {self.kind}", hint=hint) from error
        if found.alias is not None:
            raise UsageError(f"{ref!r}: a {self.kind} has versions and no aliases", hint=hint)
        return found

    def _missing(self, session: Session, wanted: Reference) -> NotFoundError:
        hint = f"`reccocktail {self.kind} list` shows all; `reccocktail {self.kind} add NAME FILE` adds one"
        known = [*session.scalars(select(RecipeRow.name).where(RecipeRow.kind == self.kind))]
        if wanted.name in known:
            return NotFoundError(
                f"{self.kind} {wanted.name} has no version {wanted.version}",
                hint=f"`reccocktail {self.kind} log {wanted.name}` lists its versions",
            )
        return NotFoundError(f"there is no {self.kind} {wanted.name!r}{did_you_mean(wanted.name, known)}", hint=hint)


def _texts(content: Any) -> builtins.list[str]:
    match content:
        case str():
            return [content]
        case Mapping():
            return [text for key, value in content.items() for text in (str(key), *_texts(value))]
        case list() | tuple():
            return [text for value in content for text in _texts(value)]
        case _:
            return []


def _version(row: RecipeVersionRow) -> RecipeVersion:
    name = row.recipe.name
    return RecipeVersion(
        f"{name}@v{row.version}",
        name,
        row.version,
        row.digest,
        row.content,
        row.note,
        row.created_at,
        row.created_by,
    )
