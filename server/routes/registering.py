"""Adding base models, domains, recipes and adapters, by what they come from or by an upload, and editing what people say of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Body, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from ...engine.recipe_book import is_file_name, keep_recipe, settle_recipe
from ...engine.recipes import parse_recipe
from ...registry import Adapter, Registry
from ...registry.artifacts.checkpoints import checkpoint
from ...registry.artifacts.sources import AdapterSource, find_adapter_source
from ...registry.catalog.annotations import Edit
from ...registry.catalog.references import SPIRIT, check_name
from ...registry.catalog.registration import Checks, Labels
from ...registry.errors import UsageError
from ...tasks import shipped_templates
from ...trainers.domains import DomainCheck
from ..identity import ADMIN, Registering, identify
from ..models import AdapterModel, BaseModelModel, DomainModel, RecipeModel
from ..uploads import MOST_FILES, AnnouncedFile, Uploads
from .declaring import BaseName, Name, Raw, named_recipe, raw_body, router

routes = router("registering")
ShortText = Annotated[str, Field(max_length=200)]
Source = Annotated[str, Field(max_length=2000)]
LongText = Annotated[str, Field(max_length=20_000)]
Figures = dict[ShortText, float]
UploadId = Annotated[str, Path(max_length=64)]


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class NewBase(_Sent):
    """`source` is ORG/NAME on the Hub; for `admin` also a folder of the server, or package:NAME."""

    name: ShortText
    source: Source
    revision: ShortText | None = None


class NewDomain(_Sent):
    """Of a domain that is there, what is given is changed. `data` is a folder of the server, which `admin` alone may name."""

    name: ShortText
    title: ShortText | None = None
    data: Source | None = None
    trainer: ShortText | None = None
    recipe: ShortText | None = None


class NewRecipe(_Sent):
    """The next version of a recipe, unless one says the same already."""

    name: ShortText
    content: dict[str, Any]
    note: LongText | None = None


class NewAdapter(_Sent):
    """By `source` (as of a base model) or by an `upload` that is complete; of a `domain`, or without one a base spirit."""

    base: ShortText
    domain: ShortText | None = None
    source: Source | None = None
    revision: ShortText | None = None
    upload: ShortText | None = None
    metrics: Figures = {}
    tags: list[ShortText] = []
    note: LongText | None = None
    aliases: list[ShortText] = []
    if_exists: Literal["reuse", "fail"] = "reuse"
    allow_base_mismatch: bool = False
    allow_partial: bool = False


class Change(_Sent):
    """What is left out stays; an empty text removes the one that is there."""

    description: LongText | None = None
    note: LongText | None = None
    tags: list[ShortText] = []
    untag: list[ShortText] = []
    metrics: Figures = {}
    unmetric: list[ShortText] = []
    links: dict[ShortText, Source] = {}
    unlink: list[ShortText] = []

    def edit(self) -> Edit:
        """Raises UsageError for one that changes nothing."""
        if self == Change():
            raise UsageError("the body says nothing to change", hint="tags, untag, note, description, links, metrics …")
        return Edit(**self.model_dump())


class Announced(_Sent):
    path: Annotated[str, Field(max_length=1000)]
    bytes: Annotated[int, Field(ge=0, le=2**50)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class NewUpload(_Sent):
    files: Annotated[list[Announced], Field(min_length=1, max_length=MOST_FILES)]


def _expect_hub(request: Request, source: str) -> None:
    """The server's own files are for those who may do anything. Raises ForbiddenError."""
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or ":" in source or "\\" in source:
        identify(request).expect(ADMIN)


@routes.post("/bases", response_model=BaseModelModel)
def add_base(request: Request, response: Response, registry: Registering, new: NewBase) -> Any:
    """Fetches and registers a base model; an equal one is not added twice."""
    _expect_hub(request, new.source)
    check_name("base", new.name)
    with checkpoint(new.source, new.revision) as found:
        row = registry.bases.add(new.name, found.folder, source=found.source, revision=found.revision)
    response.status_code = 201 if row.created else 200
    return row.to_json() | {"created": row.created, "not_stored": list(row.skipped)}


@routes.post("/domains", response_model=DomainModel)
def add_domain(request: Request, registry: Registering, new: NewDomain) -> Any:
    """Adds a domain, or changes the given fields of one; trainer and data are looked at first."""
    if new.data is not None:
        identify(request).expect(ADMIN)
    fields = {key: value for key, value in new.model_dump().items() if value is not None and key in ("data", "trainer")}
    DomainCheck()(new.name, fields)
    recipe = new.recipe and settle_recipe(registry, named_recipe(new.recipe))
    row = registry.domains.add(new.name, title=new.title, data=new.data, trainer=new.trainer, recipe=recipe)
    return row.to_json()


@routes.post("/recipes", response_model=RecipeModel)
def add_recipe(response: Response, registry: Registering, new: NewRecipe) -> Any:
    """Adds a version of a recipe; a prompt template is named as the registry or RecCocktail has it."""
    recipe = parse_recipe(new.content, where=new.name)
    template = recipe.adaptive and recipe.adaptive.template
    if template and template not in shipped_templates() and is_file_name(template):
        raise UsageError(f"the template {template!r} is a file", hint="name one of the registry: NAME or NAME@vN")
    row = keep_recipe(registry, new.name, recipe, note=new.note)
    response.status_code = 201 if row.created else 200
    return row.to_json() | {"created": row.created}


@routes.post("/recipes:check")
def check_recipe(registry: Registering, content: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    """Whether the content is a recipe, and its digest; 422 with what is wrong."""
    found = parse_recipe(content, where="sent")
    return {"ok": True, "digest": found.digest, "recipe": found.to_json()}


@routes.post("/adapters", response_model=AdapterModel)
def add_adapter(request: Request, response: Response, registry: Registering, new: NewAdapter) -> Any:
    """Checks an adapter and registers it as the next version; content that is registered already answers with its version."""
    if (new.source is None) == (new.upload is None):
        raise UsageError("give either source or upload")
    if new.upload is not None and new.revision is not None:
        raise UsageError("a revision belongs to a source on the Hub")
    if new.aliases:
        identify(request).expect(f"promote:{new.domain or SPIRIT}")
    if new.domain is not None:
        registry.domains.get(new.domain)
    row = _registered(registry, new, _source(request, registry, new))
    if new.upload is not None:
        request.app.state.uploads.remove(new.upload, registry.actor)
    response.status_code = 201 if row.created else 200
    return row.to_json() | {"created": row.created, "not_stored": list(row.skipped), "notes": list(row.notes)}


def _source(request: Request, registry: Registry, new: NewAdapter) -> AdapterSource:
    if new.upload is not None:
        return AdapterSource(request.app.state.uploads.complete(new.upload, registry.actor))
    assert new.source is not None
    _expect_hub(request, new.source)
    return find_adapter_source(new.source, revision=new.revision)


def _registered(registry: Registry, new: NewAdapter, source: AdapterSource) -> Adapter:
    return registry.adapters.add(
        source.folder,
        base=registry.bases.get(new.base),
        role="spirit" if new.domain is None else "ingredient",
        domain=new.domain,
        labels=Labels(new.metrics, new.tags, new.note, context=dict(source.origin), aliases=new.aliases),
        checks=Checks(new.allow_base_mismatch, new.allow_partial, reuse=new.if_exists == "reuse"),
    )


@routes.patch("/adapters/{ref}", response_model=AdapterModel)
def edit_adapter(registry: Registering, ref: Name, change: Change, base: BaseName = None) -> Any:
    row = registry.edits.adapter(ref, change.edit(), base=base)
    return row.to_json() | {"notes": list(row.notes)}


@routes.patch("/domains/{name}", response_model=DomainModel)
def edit_domain(registry: Registering, name: Name, change: Change) -> Any:
    row = registry.edits.domain(name, change.edit())
    return row.to_json() | {"notes": list(row.notes)}


@routes.patch("/bases/{name}", response_model=BaseModelModel)
def edit_base(registry: Registering, name: Name, change: Change) -> Any:
    row = registry.edits.base(name, change.edit())
    return row.to_json() | {"notes": list(row.notes)}


@routes.post("/uploads", status_code=201)
def begin_upload(request: Request, registry: Registering, new: NewUpload) -> dict[str, Any]:
    """Announces a folder: path, bytes and SHA-256 of each file. Pieces go to `/uploads/ID/files/PATH`."""
    files = [AnnouncedFile(**each.model_dump()) for each in new.files]
    return _uploads(request).begin(registry.actor, files)


@routes.get("/uploads/{id}")
def show_upload(request: Request, registry: Registering, id: UploadId) -> dict[str, Any]:  # noqa: A002
    """What has arrived."""
    return _uploads(request).state(id, registry.actor)


@routes.put("/uploads/{id}/files/{path:path}", openapi_extra=raw_body("application/octet-stream"))
def write_upload(
    request: Request,
    registry: Registering,
    id: UploadId,  # noqa: A002
    path: str,
    data: Raw,
    offset: Annotated[int, Query(ge=0, lt=2**50)] = 0,
) -> dict[str, Any]:
    """A piece of a file, of at most 64 MiB, from `offset` on; the answer says what is there, from where a client that was cut off goes on."""
    return _uploads(request).write(id, registry.actor, path, offset, data)


@routes.delete("/uploads/{id}", status_code=204)
def remove_upload(request: Request, registry: Registering, id: UploadId) -> None:  # noqa: A002
    _uploads(request).remove(id, registry.actor)


def _uploads(request: Request) -> Uploads:
    return request.app.state.uploads
