"""Adding base models, domains, recipes and adapters, by what they come from or by an upload, and editing what people say of them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any, Literal

from fastapi import Body, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from ...engine.recipe_book import keep_recipe, keep_template, settle_recipe
from ...engine.recipes import parse_recipe
from ...registry import Adapter, Registry
from ...registry.artifacts.checkpoints import Checkpoint, checkpoint
from ...registry.artifacts.gguf import SCHEME
from ...registry.artifacts.sources import AdapterSource, find_adapter_source
from ...registry.catalog.annotations import Edit
from ...registry.catalog.editing import BuildAnnotation
from ...registry.catalog.references import SPIRIT, check_name
from ...registry.catalog.registration import Checks, Labels
from ...registry.errors import UsageError
from ...tasks import parse_template
from ...trainers.domains import DomainCheck
from ..identity import ADMIN, Administering, Registering, identify
from ..models import AdapterModel, BaseModelModel, DomainModel, RecipeModel, model_of
from ..uploads import MOST_FILES, AnnouncedFile, Uploads
from .declaring import BaseName, Name, Raw, expect_named_template, named_recipe, raw_body, router

routes = router("registering")
BuildAnnotationModel = model_of(BuildAnnotation)
MLFLOW = (
    "mlflow_run",
    "mlflow_model",
    "mlflow_registered",
    "mlflow_version",
    "mlflow_created",
    "mlflow_base",
    "mlflow_base_revision",
)
"""What `find_adapter_source` says of an MLflow model, of which a client that uploads one tells."""
ShortText = Annotated[str, Field(max_length=200)]
Source = Annotated[str, Field(max_length=2000)]
LongText = Annotated[str, Field(max_length=20_000)]
Figures = dict[ShortText, float]
UploadId = Annotated[str, Path(max_length=64)]


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class NewBase(_Sent):
    """`source` is ORG/NAME on the Hub; for `admin` also a folder of the server, or package:NAME.

    With an `upload` it is where the folder was, an absolute path or package:NAME, which is recorded.
    """

    name: ShortText
    source: Source
    revision: ShortText | None = None
    upload: ShortText | None = None


class NewDomain(_Sent):
    """Of a domain that is there, what is given is changed. Its data are an `upload`, or `data`, a folder of the server, which `admin` alone may name."""

    name: ShortText
    title: ShortText | None = None
    data: Source | None = None
    upload: ShortText | None = None
    trainer: ShortText | None = None
    recipe: ShortText | None = None


class NewName(_Sent):
    name: ShortText


class NewRecipe(_Sent):
    """The next version of a recipe, unless one says the same already."""

    name: ShortText
    content: dict[str, Any]
    note: LongText | None = None


class NewTemplate(_Sent):
    """The next version of a prompt template, unless one says the same already."""

    name: ShortText
    content: dict[str, Any]
    note: LongText | None = None


class NewAdapter(_Sent):
    """By `source` (as of a base model) or by an `upload` that is complete; of a `domain`, or without one a base spirit.

    `context` is what is known of how it came about: `source` (the code), `run`, and of an upload what MLflow wrote beside it.
    """

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
    scan: bool = True
    context: dict[ShortText, Any] = {}


class Archiving(_Sent):
    """`force`: although it is in use; `override` is a reason in words to pass by the gate of a champion's domain."""

    force: bool = False
    override: LongText | None = None


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
    check_name("base", new.name)
    with _checkpoint(request, registry, new) as found:
        row = registry.bases.add(new.name, found.folder, source=found.source, revision=found.revision)
    _done_with(request, registry, new.upload)
    response.status_code = 201 if row.created else 200
    return row.to_json() | {"created": row.created, "not_stored": list(row.skipped)}


def _checkpoint(request: Request, registry: Registry, new: NewBase) -> AbstractContextManager[Checkpoint]:
    if new.upload is None:
        _expect_hub(request, new.source)
        return checkpoint(new.source, new.revision)
    if new.revision is not None or not new.source.startswith(("/", SCHEME)):
        raise UsageError("an upload has no revision, and its source is the absolute path that it had, or package:NAME")
    return _uploaded_checkpoint(request, registry, new.upload, new.source)


@contextmanager
def _uploaded_checkpoint(request: Request, registry: Registry, upload: str, source: str) -> Iterator[Checkpoint]:
    with _uploads(request).folder(upload, registry.actor) as folder:
        yield Checkpoint(folder, source)


def _done_with(request: Request, registry: Registry, upload: str | None) -> None:
    if upload is not None:
        _uploads(request).remove(upload, registry.actor)


@routes.post("/domains", response_model=DomainModel)
def add_domain(request: Request, response: Response, registry: Registering, new: NewDomain) -> Any:
    """Adds a domain, or changes the given fields of one; trainer and data are looked at first.

    `created` says which of these it was, and `changed` has the key of each field that changed, with what it was before and after.
    """
    if new.data is not None and new.upload is not None:
        raise UsageError("give either data or upload")
    if new.data is not None:
        identify(request).expect(ADMIN)
    data = new.data
    recipe = new.recipe and settle_recipe(registry, named_recipe(new.recipe))
    with _uploaded(request, registry, new.upload) as folder:
        given = {"data": data if folder is None else str(folder), "trainer": new.trainer}
        DomainCheck(registry.data_folder)(new.name, {key: value for key, value in given.items() if value is not None})
        if folder is not None:  # where all instances and workers find them
            data = registry.store.add_folder(folder).digest
    row = registry.domains.add(new.name, title=new.title, data=data, trainer=new.trainer, recipe=recipe)
    _done_with(request, registry, new.upload)
    response.status_code = 201 if row.created else 200
    return row.to_json() | {"created": row.created, "changed": list(row.changed)}


@routes.post("/domains/{name}:rename", response_model=DomainModel)
def rename_domain(registry: Administering, name: Name, to: NewName) -> Any:
    """Gives another name to a domain that no build refers to. For `admin`: scopes such as `promote:NAME` are by names."""
    return registry.domains.rename(name, to.name).to_json()


@routes.delete("/domains/{name}", response_model=DomainModel)
def remove_domain(registry: Administering, name: Name) -> Any:
    """Takes a domain away that nothing refers to. For `admin`: its gate goes with it."""
    return registry.domains.remove(name).to_json()


@routes.delete("/bases/{name}", response_model=BaseModelModel)
def remove_base(registry: Administering, name: Name) -> Any:
    """Takes a base model away that nothing refers to. For `admin`, as all that takes away."""
    return registry.bases.remove(name).to_json()


@routes.post("/recipes", response_model=RecipeModel)
def add_recipe(response: Response, registry: Registering, new: NewRecipe) -> Any:
    """Adds a version of a recipe; a prompt template is named as the registry or RecCocktail has it."""
    expect_named_template(registry, new.content)
    recipe = parse_recipe(new.content, where=new.name)
    row = keep_recipe(registry, new.name, recipe, note=new.note)
    response.status_code = 201 if row.created else 200
    return row.to_json() | {"created": row.created}


@routes.post("/templates", response_model=RecipeModel)
def add_template(response: Response, registry: Registering, new: NewTemplate) -> Any:
    """Adds a version of a prompt template."""
    row = keep_template(registry, new.name, parse_template(new.content, where=new.name, name=new.name), note=new.note)
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
    _check_context(new)
    with _uploaded(request, registry, new.upload) as folder:
        row = _registered(registry, new, AdapterSource(folder) if folder else _on_hub(request, new))
    _done_with(request, registry, new.upload)
    response.status_code = 201 if row.created else 200
    return row.to_json() | {
        "created": row.created,
        "not_stored": list(row.skipped),
        "ignored": list(row.ignored),
        "notes": list(row.notes),
    }


def _uploaded(request: Request, registry: Registry, upload: str | None) -> AbstractContextManager[pathlib.Path | None]:
    """The folder of a complete upload, if there is one, for as long as the block lasts."""
    return nullcontext() if upload is None else _uploads(request).folder(upload, registry.actor)


def _on_hub(request: Request, new: NewAdapter) -> AdapterSource:
    assert new.source is not None
    _expect_hub(request, new.source)
    return find_adapter_source(new.source, revision=new.revision)


def _registered(registry: Registry, new: NewAdapter, source: AdapterSource) -> Adapter:
    return registry.adapters.add(
        source.folder,
        base=registry.bases.get(new.base),
        role="spirit" if new.domain is None else "ingredient",
        domain=new.domain,
        labels=Labels(new.metrics, new.tags, new.note, context={**new.context, **source.origin}, aliases=new.aliases),
        checks=Checks(new.allow_base_mismatch, new.allow_partial, new.scan, reuse=new.if_exists == "reuse"),
    )


def _check_context(new: NewAdapter) -> None:
    """Raises UsageError for what only the registry itself says, such as how a trainer of its own made a version."""
    allowed = {"source", "run", *(MLFLOW if new.upload is not None else ())}
    if unknown := sorted(new.context.keys() - allowed):
        raise UsageError(f"the context cannot say {unknown[0]!r}", hint=f"it has {', '.join(sorted(allowed))}")


@routes.post("/adapters/{ref}:archive", response_model=AdapterModel)
def archive_adapter(
    request: Request, registry: Registering, ref: Name, how: Archiving | None = None, base: BaseName = None
) -> Any:
    """Takes a version out of use; `uses` is what one that was forced is used by. A bare name does not mean it any more."""
    how, row = how or Archiving(), registry.adapters.resolve(ref, base=base, kind=None)
    if how.override is not None:
        identify(request).expect(f"promote:{row.domain or SPIRIT}")
    uses = registry.adapters.uses(row) if how.force and row.archived_at is None else []
    row = registry.adapters.archive(row.ref, base=row.base, force=how.force, override=how.override)
    return row.to_json() | {"uses": uses}


@routes.post("/adapters/{ref}:restore", response_model=AdapterModel)
def restore_adapter(registry: Registering, ref: Name, base: BaseName = None) -> Any:
    """Puts an archived version into use again."""
    return registry.adapters.restore(ref, base=base).to_json()


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


@routes.patch("/builds/{id}", response_model=BuildAnnotationModel)
def edit_build(registry: Registering, id: Name, change: Change) -> Any:  # noqa: A002
    """What people write of a build; its result never changes."""
    row = registry.edits.build(id, change.edit())
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
