"""The tables. What must never be untrue is held by the database, and not only by the code that writes.

Keys and checks are here; what they cannot say (a version never changes, no state without its event) is said by triggers,
whose text is in `migrations/rules/`.
"""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

# every constraint has a name, so that later migrations can alter it on every database
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

ROLES = ("spirit", "ingredient")
RECIPE_KINDS = ("recipe", "template")
STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")
PROMOTIONS = ("manual", "automatic")


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in and out, always UTC; SQLite itself forgets the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value and (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


def now() -> datetime:
    return datetime.now(UTC)


def login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user id without a name
        return "unknown"


def _actor(context: DefaultExecutionContext) -> str:
    return context.execution_options.get("actor") or login_name()


class Root(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012  SQLAlchemy reads it from the class
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON(),
        int: BigInteger(),
        str: String(),
    }


class Table(Root):
    """A table whose rows have the time they were made, and the user."""

    __abstract__ = True

    created_at: Mapped[datetime] = mapped_column(default=now, sort_order=100)
    created_by: Mapped[str] = mapped_column(default=_actor, sort_order=101)


def _id() -> Mapped[int]:
    # SQLite numbers rows by itself only if the column is INTEGER
    return mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=column)


class BaseModelRow(Table):
    __tablename__ = "base_models"

    id: Mapped[int] = _id()
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

    id: Mapped[int] = _id()
    name: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    title: Mapped[str]
    data: Mapped[str | None]
    trainer: Mapped[str | None]
    recipe: Mapped[str | None]
    removed_at: Mapped[datetime | None]

    annotation: Mapped[AnnotationRow | None] = relationship(viewonly=True)

    __table_args__ = (
        _one_of("role", ROLES),
        # spirits live under one built-in domain, so that one rule numbers and names all adapters
        CheckConstraint("(name = 'spirit') = (role = 'spirit')", name="spirit"),
        UniqueConstraint("id", "role"),
    )


class AdapterRow(Table):
    __tablename__ = "adapters"

    id: Mapped[int] = _id()
    base_id: Mapped[int] = mapped_column(ForeignKey("base_models.id"))
    domain_id: Mapped[int]
    role: Mapped[str]
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
        CheckConstraint("version > 0", name="version"),
        CheckConstraint("NOT is_current OR (role = 'spirit' AND archived_at IS NULL)", name="current"),
        UniqueConstraint("base_id", "domain_id", "version"),
        UniqueConstraint("base_id", "domain_id", "digest"),
        UniqueConstraint("base_id", "domain_id", "id"),  # what aliases point to
        Index(None, "domain_id", "id"),
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

    id: Mapped[int] = _id()
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


class BuildRow(Table):
    """A build, queued or carried out.

    `own_recipe`: whether it was asked for by the recipe that was its domain's own then; unknown (NULL) of what was asked for
    before this was kept. Once true it stays true. `collected_at`: since when its result is gone, because nobody needed it.
    """

    __tablename__ = "builds"

    id: Mapped[str] = mapped_column(primary_key=True)
    base_id: Mapped[int] = mapped_column(ForeignKey("base_models.id"))
    domain_id: Mapped[int] = mapped_column(ForeignKey("domains.id"))
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
        _one_of("status", STATUSES),
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

    __table_args__ = (_one_of("promote", PROMOTIONS),)


class BuildLogRow(Table):
    """Something that a worker said of its build."""

    __tablename__ = "build_logs"

    id: Mapped[int] = _id()
    build_id: Mapped[str] = mapped_column(ForeignKey("builds.id"))
    worker: Mapped[str | None]
    text: Mapped[str]

    __table_args__ = (Index(None, "build_id", "id"),)


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

    id: Mapped[int] = _id()
    build_id: Mapped[str | None] = mapped_column(ForeignKey("builds.id"), index=True)
    adapter_id: Mapped[int | None] = mapped_column(ForeignKey("adapters.id"), index=True)
    repo: Mapped[str] = mapped_column(index=True)
    revision: Mapped[str]
    tag: Mapped[str | None]
    files: Mapped[dict[str, Any] | None]
    options: Mapped[dict[str, Any] | None]

    build: Mapped[BuildRow | None] = relationship(lazy="joined")
    adapter: Mapped[AdapterRow | None] = relationship(lazy="joined")
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

    id: Mapped[int] = _id()
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

    id: Mapped[int] = _id()
    kind: Mapped[str]
    name: Mapped[str]

    __table_args__ = (_one_of("kind", RECIPE_KINDS), UniqueConstraint("kind", "name"))


class RecipeVersionRow(Table):
    """What a recipe or template said from then on. `domains.recipe` is `NAME@vN` of one, or the name of one that ships."""

    __tablename__ = "recipe_versions"

    id: Mapped[int] = _id()
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

    id: Mapped[int] = _id()
    adapter_id: Mapped[int | None] = mapped_column(ForeignKey("adapters.id"))
    build_id: Mapped[str | None] = mapped_column(ForeignKey("builds.id"))

    __table_args__ = (
        CheckConstraint("(adapter_id IS NULL) <> (build_id IS NULL)", name="subject"),
        UniqueConstraint("adapter_id", "created_by"),
        UniqueConstraint("build_id", "created_by"),
    )


class EventRow(Table):
    """What happened to what. An alias event has `alias`, where it is now (`adapter_id`) and where it was (`previous_id`)."""

    __tablename__ = "events"

    id: Mapped[int] = _id()
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
