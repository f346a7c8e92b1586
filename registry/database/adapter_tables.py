"""The tables of base models, domains, adapter versions, their aliases, and what people edit of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from .columns import Root, Table, id_column, one_of

ROLES = ("spirit", "ingredient")
ADAPTER_KINDS = ("lora", "personalised-lora", "bi-tuning")  # only the first is ever mixed


class BaseModelRow(Table):
    __tablename__ = "base_models"

    id: Mapped[int] = id_column()
    name: Mapped[str] = mapped_column(unique=True)
    source: Mapped[str]
    revision: Mapped[str | None]
    digest: Mapped[str]
    architecture: Mapped[str]
    dtype: Mapped[str]
    parameters: Mapped[int]
    bytes: Mapped[int]
    removed_at: Mapped[datetime | None]

    annotation: Mapped[AnnotationRow | None] = relationship(viewonly=True)


class DomainRow(Table):
    __tablename__ = "domains"

    id: Mapped[int] = id_column()
    name: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    title: Mapped[str]
    data: Mapped[str | None]
    trainer: Mapped[str | None]
    recipe: Mapped[str | None]
    removed_at: Mapped[datetime | None]

    annotation: Mapped[AnnotationRow | None] = relationship(viewonly=True)

    __table_args__ = (
        one_of("role", ROLES),
        # spirits live under one built-in domain, so that one rule numbers and names all adapters
        CheckConstraint("(name = 'spirit') = (role = 'spirit')", name="spirit"),
        UniqueConstraint("id", "role"),
    )


class AdapterRow(Table):
    __tablename__ = "adapters"

    id: Mapped[int] = id_column()
    base_id: Mapped[int] = mapped_column(ForeignKey("base_models.id"))
    domain_id: Mapped[int]
    role: Mapped[str]
    kind: Mapped[str] = mapped_column(default=ADAPTER_KINDS[0], server_default=ADAPTER_KINDS[0])
    version: Mapped[int]
    digest: Mapped[str]
    rank: Mapped[int]
    alpha: Mapped[float]
    target_modules: Mapped[list[str]]
    tensors: Mapped[int]
    bytes: Mapped[int]
    metrics: Mapped[dict[str, Any]]
    tags: Mapped[list[str]]
    note: Mapped[str | None]
    context: Mapped[dict[str, Any]]
    is_current: Mapped[bool] = mapped_column(default=False)
    archived_at: Mapped[datetime | None]
    content: Mapped[str | None]

    base: Mapped[BaseModelRow] = relationship(lazy="joined", innerjoin=True)
    domain: Mapped[DomainRow] = relationship(lazy="joined", innerjoin=True)
    aliases: Mapped[list[AliasRow]] = relationship(lazy="selectin", order_by="AliasRow.name", viewonly=True)
    annotation: Mapped[AnnotationRow | None] = relationship(lazy="joined", viewonly=True)

    __table_args__ = (
        ForeignKeyConstraint(["domain_id", "role"], ["domains.id", "domains.role"]),  # the role is the domain's
        one_of("kind", ADAPTER_KINDS),
        CheckConstraint("version > 0", name="version"),
        CheckConstraint("NOT is_current OR (role = 'spirit' AND archived_at IS NULL)", name="current"),
        UniqueConstraint("base_id", "domain_id", "version"),
        UniqueConstraint("base_id", "domain_id", "digest"),
        UniqueConstraint("base_id", "domain_id", "id"),  # what aliases point to
        Index(None, "domain_id", "id"),
        Index(None, "kind", "id"),
        Index(None, "base_id", "domain_id", "content"),
        Index(
            "uq_adapters_current_spirit", "base_id", unique=True,
            sqlite_where=text("is_current"), postgresql_where=text("is_current"),
        ),
    )  # fmt: skip


class AdapterTagRow(Root):
    """What `adapter list --tag` searches by; the database fills it from `adapters.tags`, and from `annotations.tags` once they were edited."""

    __tablename__ = "adapter_tags"

    tag: Mapped[str] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), primary_key=True)


class AdapterMetricRow(Root):
    """What `adapter list --metric` searches by; the database fills it as it fills `adapter_tags`."""

    __tablename__ = "adapter_metrics"

    name: Mapped[str] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    value: Mapped[float]

    __table_args__ = (Index(None, "name", "value", "adapter_id"),)


class AdapterWordsRow(Root):
    """What `adapter list --search` looks in: domain, note and tags, case-folded. A narrow table is read quickly."""

    __tablename__ = "adapter_words"

    adapter_id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), ForeignKey("adapters.id"), primary_key=True, autoincrement=False
    )
    words: Mapped[str]


_OWNERS = ("adapter_id", "domain_id", "base_id", "build_id")


class AnnotationRow(Root):
    """What people edited of an adapter version, a domain, a base model or a build: it stands for what its own row says.

    `words` is what search looks in beside the domain's name; the database takes it over into `adapter_words`.
    """

    __tablename__ = "annotations"

    id: Mapped[int] = id_column()
    adapter_id: Mapped[int | None] = mapped_column(ForeignKey("adapters.id"), unique=True)
    domain_id: Mapped[int | None] = mapped_column(ForeignKey("domains.id"), unique=True)
    base_id: Mapped[int | None] = mapped_column(ForeignKey("base_models.id"), unique=True)
    build_id: Mapped[str | None] = mapped_column(ForeignKey("builds.id"), unique=True)
    description: Mapped[str | None]
    note: Mapped[str | None]
    tags: Mapped[list[str]]
    metrics: Mapped[dict[str, Any]]
    links: Mapped[dict[str, Any]]
    words: Mapped[str]
    event_id: Mapped[int] = mapped_column(ForeignKey("events.id"))

    __table_args__ = (
        CheckConstraint(
            " + ".join(f"(CASE WHEN {owner} IS NULL THEN 0 ELSE 1 END)" for owner in _OWNERS) + " = 1", name="owner"
        ),
    )


class AliasRow(Table):
    """An alias is where its newest event says it is."""

    __tablename__ = "aliases"

    base_id: Mapped[int] = mapped_column(primary_key=True)
    domain_id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    adapter_id: Mapped[int]
    event_id: Mapped[int]

    __table_args__ = (
        # an alias cannot leave its base and domain
        ForeignKeyConstraint(
            ["base_id", "domain_id", "adapter_id"], ["adapters.base_id", "adapters.domain_id", "adapters.id"]
        ),
        # and cannot be where no event has put it
        ForeignKeyConstraint(
            ["event_id", "base_id", "domain_id", "name", "adapter_id"],
            ["events.id", "events.base_id", "events.domain_id", "events.alias", "events.adapter_id"],
        ),
        Index(None, "adapter_id"),
    )
