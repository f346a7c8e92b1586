"""The API's models, made of the records that the registry answers with: what `--json` prints is what the API answers."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, create_model

from ..engine.apart import Weights
from ..registry import Adapter, Base, Build, Domain, Event, Publication
from ..registry.catalog.build_records import LogLine
from ..registry.catalog.evaluations import EvaluationRecord
from ..registry.catalog.recipes import RecipeVersion
from ..registry.catalog.records import Record
from ..registry.catalog.serving import BuildAlias, Move
from ..registry.declared.outcomes import Outcome

Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


@cache
def model_of(record: type[Record]) -> type[BaseModel]:
    """The form of `to_json` of a record; more keys may come with a newer version, or with what is shown beside it."""
    hints = typing.get_type_hints(record)
    shown = {each.name: hints[each.name] for each in fields(record) if each.metadata.get("json", True)}
    definitions: dict[str, Any] = {name: (_plain(hint), ...) for name, hint in shown.items()}
    return create_model(
        record.__name__, __config__=ConfigDict(extra="allow"), __doc__=(record.__doc__ or "").strip(), **definitions
    )


def _plain(hint: Any) -> Any:
    """The type of a value after `to_json`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is datetime:
        return Moment
    if hint is Path:
        return str
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_plain, inner))]  # noqa: UP007  made when it runs
    if origin is tuple:
        return list[_plain(inner[0])]
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return dict[str, _plain(inner[1])]
    return hint


class Problem(BaseModel):
    """What went wrong: a stable code, what and where, and what to do next."""

    code: str
    message: str
    hint: str | None = None


class Failure(BaseModel):
    """Every answer that is an error."""

    error: Problem


AdapterModel, BaseModelModel, BuildModel = model_of(Adapter), model_of(Base), model_of(Build)
DomainModel, EventModel, PublicationModel = model_of(Domain), model_of(Event), model_of(Publication)
EvaluationModel, RecipeModel, LogLineModel = model_of(EvaluationRecord), model_of(RecipeVersion), model_of(LogLine)


BuildAliasModel, MoveModel = model_of(BuildAlias), model_of(Move)


class _Answer(BaseModel):
    """More keys may come with a newer version."""

    model_config = ConfigDict(extra="allow")


class ResolvedModel(_Answer):
    """What a name means: an adapter version, the adapter that a build made, or a merged checkpoint (`kind`).

    Of a domain's checkpoint `state` to `trial` say why it is that build.
    """

    ref: str
    kind: Literal["adapter", "checkpoint"]
    adapter: str | None = None
    build: str | None
    base: str
    digest: str
    at: Moment | None = None
    state: str = ""
    reasons: list[str] = []
    why: str | None = None
    served: BuildAliasModel | None = None  # pyright: ignore[reportInvalidTypeForm]
    ready: str | None = None
    trial: str | None = None


class PendingModel(_Answer):
    """A build that is under way."""

    id: str
    status: str
    stage: str | None
    done: int
    total: int


class FailedModel(_Answer):
    """The newest build of a domain, which failed."""

    id: str
    error: dict[str, Any]


class BehindModel(_Answer):
    """A repository that has another build than the one that is served."""

    repo: str
    build: str | None
    serves: str


class IndexStateModel(_Answer):
    """The index of a bi-tuning."""

    adapter: str
    base: str
    state: str
    reasons: list[str]
    build: str | None


class MeasuredModel(_Answer):
    """The metric that counts, and what was measured of the champion and of what is served."""

    metric: str
    champion: dict[str, Any] | None
    served: dict[str, Any] | None


class StatusModel(_Answer):
    """Where a domain stands."""

    domain: str
    spirit: str | None
    ingredient: str | None
    build: str | None
    outcome: str | None
    state: str
    reasons: list[str]
    why: str | None
    served: BuildAliasModel | None  # pyright: ignore[reportInvalidTypeForm]
    ready: str | None
    trial: str | None
    pending: list[PendingModel]
    failed: FailedModel | None
    published: str | None
    publication: Literal["fresh", "stale"] | None
    behind: BehindModel | None
    indexes: list[IndexStateModel]
    gate: dict[str, Any] | None
    measured: MeasuredModel


class IntervalModel(_Answer):
    """A paired difference with its 95 % interval, over `n` users or rows."""

    mean: float
    low: float
    high: float
    n: int


class ComparisonModel(_Answer):
    """A minus B, by metric."""

    a: EvaluationModel  # pyright: ignore[reportInvalidTypeForm]
    b: EvaluationModel  # pyright: ignore[reportInvalidTypeForm]
    users: int
    differences: dict[str, IntervalModel]


class FieldModel(_Answer):
    """Metadata in which two versions differ."""

    name: str
    one: Any
    other: Any


class DifferenceModel(_Answer):
    """What two versions differ in; `weights` is null where their base models have different weights."""

    one: AdapterModel  # pyright: ignore[reportInvalidTypeForm]
    other: AdapterModel  # pyright: ignore[reportInvalidTypeForm]
    differ: Annotated[list[FieldModel], Field(alias="fields")]
    weights: Weights | None


class VerificationModel(_Answer):
    """A version that is sound, and what is peculiar about it."""

    ref: str
    digest: str
    ok: bool
    notes: list[str]


class RanksModel(_Answer):
    """Of each user, in order, the rank of the right item, 0 for the best, null where it was not named; of clicks each row's probability and label."""

    user_ranks: list[int | None] = []
    row_scores: list[float] = []
    row_labels: list[bool] = []
    row_users: list[int] = []


class WithdrawalModel(_Answer):
    """The publications that are withdrawn now, of a repository."""

    repo: str
    made_private: bool
    withdrawn: list[PublicationModel]  # pyright: ignore[reportInvalidTypeForm]


class RecipeEntryModel(_Answer):
    """A recipe of a list, with the domains that use it."""

    name: str
    ref: str
    summary: str | None
    digest: str
    domains: list[str]


class TemplateEntryModel(_Answer):
    """A prompt template of a list."""

    name: str
    ref: str
    note: str | None
    digest: str


class RollbackModel(_Answer):
    """What going back from one build to another changes, and where the domain stands then."""

    domain: str
    base: str
    alias: str
    from_: Annotated[str, Field(alias="from")]
    to: str
    changes: list[str]
    state: str
    reasons: list[str]
    publications: list[str]
    dry_run: bool


class OutcomeCounts(_Answer):
    """What became of each object of a file that was applied, and how many of each outcome there are."""

    dry_run: bool
    counts: dict[str, int]
    objects: list[model_of(Outcome)]  # pyright: ignore[reportInvalidTypeForm]


@cache
def page_of(model: type[BaseModel]) -> type[BaseModel]:
    """A page of a list; `next` is the cursor of the page after it, null at the end."""
    name = f"{model.__name__}Page"
    definitions: dict[str, Any] = {"items": (list[model], ...), "next": (str | None, ...)}
    return create_model(name, __doc__="A page of a list.", **definitions)
