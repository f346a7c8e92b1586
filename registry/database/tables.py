"""The tables. What must never be untrue is held by the database, and not only by the code that writes.

Keys and checks are here; what they cannot say (a version never changes, no state without its event) is said by triggers,
whose text is in `migrations/rules/`.
"""

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

from .adapter_tables import ROLES as ROLES
from .adapter_tables import AdapterMetricRow as AdapterMetricRow
from .adapter_tables import AdapterRow as AdapterRow
from .adapter_tables import AdapterTagRow as AdapterTagRow
from .adapter_tables import AdapterWordsRow as AdapterWordsRow
from .adapter_tables import AliasRow as AliasRow
from .adapter_tables import AnnotationRow as AnnotationRow
from .adapter_tables import BaseModelRow as BaseModelRow
from .adapter_tables import DomainRow as DomainRow
from .columns import Root, id_column, one_of
from .columns import Table as Table
from .columns import UtcDateTime as UtcDateTime
from .columns import login_name as login_name
from .columns import now as now
from .webhook_tables import WebhookAttemptRow as WebhookAttemptRow
from .webhook_tables import WebhookDeliveryRow as WebhookDeliveryRow
from .webhook_tables import WebhookRow as WebhookRow

RECIPE_KINDS = ("recipe", "template")
BUILD_KINDS = ("merge", "index")
STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")
PROMOTIONS = ("manual", "automatic")


class BuildRow(Table):
    """A build, queued or carried out: a merge of plain LoRAs, or the index of a domain's items by a bi-tuning (`kind`).

    `own_recipe`: whether it was asked for by the recipe that was its domain's own then; unknown (NULL) of what was asked for
    before this was kept. Once true it stays true. `collected_at`: since when its result is gone, because nobody needed it.
    """

    __tablename__ = "builds"

    id: Mapped[str] = mapped_column(primary_key=True)
    base_id: Mapped[int] = mapped_column(ForeignKey("base_models.id"))
    domain_id: Mapped[int] = mapped_column(ForeignKey("domains.id"))
    kind: Mapped[str] = mapped_column(default=BUILD_KINDS[0], server_default=BUILD_KINDS[0])
    status: Mapped[str]
    key: Mapped[str] = mapped_column(index=True)
    recipe: Mapped[dict[str, Any]]
    inputs: Mapped[dict[str, Any]]
    digest: Mapped[str | None]
    coefficients: Mapped[dict[str, Any] | None]
    report: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    stage: Mapped[str | None]
    retry_at: Mapped[datetime | None]
    own_recipe: Mapped[bool | None]
    collected_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    base: Mapped[BaseModelRow] = relationship(lazy="joined", innerjoin=True)
    domain: Mapped[DomainRow] = relationship(lazy="joined", innerjoin=True)
    annotation: Mapped[AnnotationRow | None] = relationship(viewonly=True)

    __table_args__ = (
        one_of("kind", BUILD_KINDS),
        one_of("status", STATUSES),
        Index(None, "domain_id", "id"),
        Index(None, "domain_id", "status", "finished_at"),
        Index("uq_builds_base_id_domain_id_id", "base_id", "domain_id", "id", unique=True),  # what aliases point to
        CheckConstraint("(status = 'succeeded') = (digest IS NOT NULL)", name="digest"),
        CheckConstraint("(status = 'running') = (lease_until IS NOT NULL)", name="lease"),
        Index(
            "uq_builds_open_key", "key", unique=True,
            sqlite_where=text("status IN ('queued', 'running')"),
            postgresql_where=text("status IN ('queued', 'running')"),
        ),
    )  # fmt: skip


class BuildAliasRow(Table):
    """An alias of builds is where its newest event says it is, and never on a build that has not succeeded."""

    __tablename__ = "build_aliases"

    base_id: Mapped[int] = mapped_column(primary_key=True)
    domain_id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    build_id: Mapped[str]
    event_id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), ForeignKey("events.id"), autoincrement=False
    )

    build: Mapped[BuildRow] = relationship(
        lazy="joined",
        innerjoin=True,
        viewonly=True,
        primaryjoin="foreign(BuildAliasRow.build_id) == BuildRow.id",
    )
    event: Mapped[EventRow] = relationship(lazy="joined", innerjoin=True, viewonly=True)

    __table_args__ = (
        ForeignKeyConstraint(["base_id", "domain_id", "build_id"], ["builds.base_id", "builds.domain_id", "builds.id"]),
        Index(None, "build_id"),
    )


class BuildPinRow(Table):
    """A build whose files are to be kept, whatever else may go."""

    __tablename__ = "build_pins"

    build_id: Mapped[str] = mapped_column(ForeignKey("builds.id"), primary_key=True)


class ServingPolicyRow(Table):
    """Which alias of its builds a domain serves, and whether it moves by itself to what succeeds by the domain's own recipe.

    A domain without a row serves `production`, which is moved by hand.
    """

    __tablename__ = "serving_policies"

    domain_id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), ForeignKey("domains.id"), primary_key=True, autoincrement=False
    )
    alias: Mapped[str]
    promote: Mapped[str]

    __table_args__ = (one_of("promote", PROMOTIONS),)


class BuildLogRow(Table):
    """Something that a worker said of its build."""

    __tablename__ = "build_logs"

    id: Mapped[int] = id_column()
    build_id: Mapped[str] = mapped_column(ForeignKey("builds.id"))
    worker: Mapped[str | None]
    text: Mapped[str]

    __table_args__ = (Index(None, "build_id", "id"),)


class BuildRequestRow(Table):
    """A request that its sender named by a key, so that sending it again has the same answer; `digest` is what was asked for."""

    __tablename__ = "build_requests"

    actor: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    build_id: Mapped[str] = mapped_column(ForeignKey("builds.id"))


class BuildInputRow(Table):
    __tablename__ = "build_inputs"

    build_id: Mapped[str] = mapped_column(ForeignKey("builds.id"), primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), primary_key=True)

    __table_args__ = (Index(None, "adapter_id", "build_id"),)


class PublicationRow(Table):
    """A commit on the Hub that carries a build or an adapter version.

    `files` has the SHA-256 (hex) of every file of ours in it, by path; `options` what the next publication reuses.
    Both are unknown (NULL) of what was published before they were kept.
    """

    __tablename__ = "publications"

    id: Mapped[int] = id_column()
    build_id: Mapped[str | None] = mapped_column(ForeignKey("builds.id"), index=True)
    adapter_id: Mapped[int | None] = mapped_column(ForeignKey("adapters.id"), index=True)
    repo: Mapped[str] = mapped_column(index=True)
    revision: Mapped[str]
    tag: Mapped[str | None]
    files: Mapped[dict[str, Any] | None]
    options: Mapped[dict[str, Any] | None]

    build: Mapped[BuildRow | None] = relationship(lazy="joined")
    adapter: Mapped[AdapterRow | None] = relationship(
        lazy="selectin"
    )  # its own joins make a slow query of a joined one
    withdrawal: Mapped[WithdrawalRow | None] = relationship(lazy="joined", viewonly=True)

    __table_args__ = (CheckConstraint("(build_id IS NULL) <> (adapter_id IS NULL)", name="subject"),)


class WithdrawalRow(Table):
    """A publication that does not count any more; what is on the Hub is the Hub's."""

    __tablename__ = "withdrawals"

    publication_id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"),
        ForeignKey("publications.id"),
        primary_key=True,
        autoincrement=False,
    )


class EvaluationRow(Table):
    """What was measured of one system: `weights` is its checkpoint or adapter, `on_base` the base under an adapter, else empty.

    `key` names everything that decides the figures; `questions` the users and candidates, whatever the wording; `ranks` is a tree in the store.
    """

    __tablename__ = "evaluations"

    id: Mapped[int] = id_column()
    key: Mapped[str] = mapped_column(unique=True)
    system: Mapped[str]
    weights: Mapped[str]
    on_base: Mapped[str]
    label: Mapped[str]
    domain_id: Mapped[int] = mapped_column(ForeignKey("domains.id"))
    split: Mapped[str]
    mode: Mapped[str]
    dtype: Mapped[str]
    task_digest: Mapped[str]
    task: Mapped[dict[str, Any]]
    questions: Mapped[str]
    users: Mapped[int]
    metrics: Mapped[dict[str, Any]]
    detail: Mapped[dict[str, Any]]
    ranks: Mapped[str]
    version: Mapped[str]

    domain: Mapped[DomainRow] = relationship(lazy="joined", innerjoin=True)

    __table_args__ = (
        CheckConstraint("users > 0", name="users"),
        Index(None, "domain_id", "id"),
        Index(None, "weights", "on_base", "split", "domain_id", "id"),
    )


class EvaluationMetricRow(Root):
    """What evaluations are searched and sorted by; the database fills it from `evaluations.metrics`."""

    __tablename__ = "evaluation_metrics"

    name: Mapped[str] = mapped_column(primary_key=True)
    evaluation_id: Mapped[int] = mapped_column(ForeignKey("evaluations.id"), primary_key=True)
    value: Mapped[float]

    __table_args__ = (Index(None, "name", "value", "evaluation_id"),)


class RecipeRow(Table):
    """A recipe or a prompt template by its name; what it says is in its versions."""

    __tablename__ = "recipes"

    id: Mapped[int] = id_column()
    kind: Mapped[str]
    name: Mapped[str]

    __table_args__ = (one_of("kind", RECIPE_KINDS), UniqueConstraint("kind", "name"))


class RecipeVersionRow(Table):
    """What a recipe or template said from then on. `domains.recipe` is `NAME@vN` of one, or the name of one that ships."""

    __tablename__ = "recipe_versions"

    id: Mapped[int] = id_column()
    recipe_id: Mapped[int] = mapped_column(ForeignKey("recipes.id"))
    version: Mapped[int]
    digest: Mapped[str]
    content: Mapped[dict[str, Any]]
    note: Mapped[str | None]

    recipe: Mapped[RecipeRow] = relationship(lazy="joined", innerjoin=True)

    __table_args__ = (
        CheckConstraint("version > 0", name="version"),
        UniqueConstraint("recipe_id", "version"),
        UniqueConstraint("recipe_id", "digest"),
    )


class GateRow(Table):
    """What a domain asks for before its champion moves or another build is served; its history is in the events.

    `version` is how often the domain has set a gate, this time included.
    """

    __tablename__ = "gates"

    domain_id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), ForeignKey("domains.id"), primary_key=True, autoincrement=False
    )
    requirement: Mapped[dict[str, Any] | None]
    approvals: Mapped[int]
    version: Mapped[int]

    __table_args__ = (
        CheckConstraint("approvals >= 0", name="approvals"),
        CheckConstraint("requirement IS NOT NULL OR approvals > 0", name="closed"),
    )


class ApprovalRow(Table):
    """Somebody (`created_by`) who did not register the version, or request the build, approves it."""

    __tablename__ = "approvals"

    id: Mapped[int] = id_column()
    adapter_id: Mapped[int | None] = mapped_column(ForeignKey("adapters.id"))
    build_id: Mapped[str | None] = mapped_column(ForeignKey("builds.id"))

    __table_args__ = (
        CheckConstraint("(adapter_id IS NULL) <> (build_id IS NULL)", name="subject"),
        UniqueConstraint("adapter_id", "created_by"),
        UniqueConstraint("build_id", "created_by"),
    )


class TokenRow(Table):
    """Who may ask a server: `digest` is the SHA-256 (hex) of 256 random bits that only their holder has.

    Only `revoked_at`, once, and `last_used_at` ever change.
    """

    __tablename__ = "tokens"

    id: Mapped[int] = id_column()
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    event_id: Mapped[int] = mapped_column(ForeignKey("events.id"), unique=True)  # that made it

    __table_args__ = (
        CheckConstraint("length(digest) = 64", name="digest"),
        Index(
            "uq_tokens_standing_name", "name", unique=True,
            sqlite_where=text("revoked_at IS NULL"), postgresql_where=text("revoked_at IS NULL"),
        ),
    )  # fmt: skip


class EventRow(Table):
    """What happened to what. An alias event has `alias`, where it is now (`adapter_id`) and where it was (`previous_id`)."""

    __tablename__ = "events"

    id: Mapped[int] = id_column()
    kind: Mapped[str]
    subject: Mapped[str]
    base_id: Mapped[int | None] = mapped_column(ForeignKey("base_models.id"))
    domain_id: Mapped[int | None] = mapped_column(ForeignKey("domains.id"))
    adapter_id: Mapped[int | None]
    previous_id: Mapped[int | None] = mapped_column(ForeignKey("adapters.id"))
    alias: Mapped[str | None]
    detail: Mapped[dict[str, Any]]

    __table_args__ = (
        ForeignKeyConstraint(
            ["base_id", "domain_id", "adapter_id"], ["adapters.base_id", "adapters.domain_id", "adapters.id"]
        ),
        CheckConstraint("(alias IS NOT NULL) = (kind IN ('alias.set', 'alias.moved', 'alias.removed'))", name="alias"),
        CheckConstraint("alias IS NULL OR (adapter_id IS NULL) = (kind = 'alias.removed')", name="removed"),
        CheckConstraint("alias IS NULL OR (base_id IS NOT NULL AND domain_id IS NOT NULL)", name="place"),
        CheckConstraint(
            "kind NOT IN ('adapter.added', 'adapter.archived', 'adapter.restored')"
            " OR (base_id IS NOT NULL AND domain_id IS NOT NULL AND adapter_id IS NOT NULL)",
            name="adapter",
        ),
        UniqueConstraint("id", "base_id", "domain_id", "alias", "adapter_id"),  # what aliases point to
        Index(None, "subject", "id"),
        Index(None, "domain_id", "id"),
        Index(None, "adapter_id", "id"),
        Index(None, "previous_id", "id"),
        Index(None, "base_id", "domain_id", "alias", "id"),
    )
