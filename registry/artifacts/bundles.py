"""The folder of a personalised LoRA: what its manifest says, and that its files are what the manifest says.

Flat: `bundle.json` and beside it safetensors and JSON. Read here without a tensor; `networks.bundle` writes the folder and opens it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import BaseMismatchError, InvalidArtifactError
from ..store.links import check_link
from ..strict_json import read_object, shown
from .allowlist import BUNDLE, GATED_LORA, ITEMS, RECOMMENDER, is_beside_bundle

PERSONALISED = "personalised-lora"
FORMAT = 1
OF_THE_HUB = ".gitattributes"  # in every repository
AGAIN = "take it again from where it was made, or train again"

DIGEST = r"^sha256:[0-9a-f]{64}$"


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gates(Part):
    """Sizes of the meta-LoRAs and their gates, as `networks.gated_lora.GatedLoraConfig` has them; `modules` are in its order."""

    modules: tuple[str, ...] = Field(min_length=1)
    metas: int = Field(ge=1)
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0, allow_inf_nan=False)
    targets: tuple[str, ...] = Field(min_length=1)
    form: Literal["sum", "factor"]
    temperature: float = Field(gt=0, allow_inf_nan=False)
    square_root: bool
    width: int = Field(ge=1)
    hidden: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)


class Retrieval(Part):
    """Which of the rated items a prompt shows: the `count` newest, or those most similar to the target."""

    by: Literal["recent", "similar"] = "recent"
    count: int = Field(default=10, ge=1)


class Manifest(Part):
    """What bundles of all kinds say: `base` is the digest of the base model; `files` has the SHA-256 of each file."""

    format: Literal[1] = FORMAT
    kind: str
    base: str = Field(pattern=DIGEST)
    files: dict[str, str]


AnyManifest = TypeVar("AnyManifest", bound=Manifest)


class BundleManifest(Manifest):
    """What the bundle of a personalised LoRA says of itself.

    `template` and `clicks` are a click template and click options, whole. `users` is how many users the recommender knows by id, 0 once
    they are stripped. `trained_on` is the digest of what the recommender was trained on, `data` those of the domains' data.
    """

    kind: Literal["personalised-lora"] = PERSONALISED  # pyright: ignore[reportIncompatibleVariableOverride]
    target_dependent: bool
    gates: Gates
    template: dict[str, Any]
    clicks: dict[str, Any]
    retrieval: Retrieval
    users: int = Field(ge=0)
    trained_on: str
    seed: int
    data: tuple[str, ...] = ()


def manifest_text(manifest: Manifest) -> str:
    """As the file has it; equal manifests have equal bytes."""
    return json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> BundleManifest:
    """The manifest alone; no other file is looked at. Raises InvalidArtifactError."""
    return read_manifest_of(folder, BundleManifest)


def read_manifest_of(folder: Path, model: type[AnyManifest]) -> AnyManifest:
    """As `read_manifest`, of a bundle of the model's kind."""
    path = _inside(folder, BUNDLE)
    content = read_object(path)
    _check_readable(path, content, model.model_fields["kind"].default)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the whole"
        raise InvalidArtifactError(f"{path}: {where}: {problem['msg']}", hint=AGAIN) from error


def check_base(folder: Path, manifest: Manifest, base_digest: str) -> None:
    """Raises BaseMismatchError for a bundle of another base."""
    if manifest.base != base_digest:
        raise BaseMismatchError(
            f"{folder}: was trained beside the base {manifest.base}, not {base_digest}",
            hint="name the base that it was trained beside, or train it again beside this one",
        )


def check_files(folder: Path, manifest: BundleManifest) -> None:
    """That the folder has the manifest's files, each whole, and no other but papers. Raises InvalidArtifactError naming the file."""
    expected = {GATED_LORA, *RECOMMENDER} | ({*ITEMS} & manifest.files.keys())
    if manifest.files.keys() != expected or len(expected & {*ITEMS}) == 1:
        raise InvalidArtifactError(
            f"{folder / BUNDLE}: lists {sorted(manifest.files)} where a bundle has {sorted(expected | {*ITEMS})}",
            hint=AGAIN,
        )
    check_listed(folder, manifest)


def check_listed(folder: Path, manifest: Manifest) -> None:
    """That each file of the manifest is whole, and that there is no other but papers. Raises InvalidArtifactError naming the file."""
    for name, digest in manifest.files.items():
        if (found := _digest(_inside(folder, name))) != digest:
            raise InvalidArtifactError(
                f"{folder / name}: is cut or changed: its SHA-256 is {found}, and {BUNDLE} says {digest}", hint=AGAIN
            )
    check_no_more(folder, manifest)


def check_no_more(folder: Path, manifest: Manifest) -> None:
    """Raises InvalidArtifactError for a file that is neither the bundle's nor a paper (a card, a license, a training log) nor the Hub's own."""
    for path in sorted(folder.iterdir()):
        if path.name not in {BUNDLE, OF_THE_HUB, *manifest.files} and not is_beside_bundle(path.name):
            raise InvalidArtifactError(
                f"{path}: is no file of this bundle: {BUNDLE} does not list it", hint="move it elsewhere"
            )


def bundle_files(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """The SHA-256 of each of these files, by name."""
    return {name: _digest(folder / name) for name in sorted(names)}


def _check_readable(path: Path, content: Mapping[str, Any], wanted: str) -> None:
    kind, version = content.get("kind"), content.get("format")
    if kind != wanted:
        raise InvalidArtifactError(
            f"{path}: is of kind {shown(kind)}, and read here is {wanted!r}",
            hint="upgrade reccocktail, if it comes from a newer version",
        )
    if version != FORMAT:
        raise InvalidArtifactError(
            f"{path}: has format {shown(version)}, and read here is {FORMAT}",
            hint="upgrade reccocktail, if it comes from a newer version",
        )


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise InvalidArtifactError(f"{folder}: has no regular file {name}", hint=AGAIN)
    check_link(folder, path)
    return path


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidArtifactError(f"{path}: cannot be read: {error.strerror}") from error
