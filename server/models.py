"""The API's models, made of the records that the registry answers with: what `--json` prints is what the API answers."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Field, create_model

from ..registry import Adapter, Base, Build, Domain, Event, Publication
from ..registry.catalog.build_records import LogLine
from ..registry.catalog.evaluations import EvaluationRecord
from ..registry.catalog.recipes import RecipeVersion
from ..registry.catalog.records import Record
from ..registry.catalog.serving import BuildAlias, Move

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


@cache
def page_of(model: type[BaseModel]) -> type[BaseModel]:
    """A page of a list; `next` is the cursor of the page after it, null at the end."""
    name = f"{model.__name__}Page"
    definitions: dict[str, Any] = {"items": (list[model], ...), "next": (str | None, ...)}
    return create_model(name, __doc__="A page of a list.", **definitions)
