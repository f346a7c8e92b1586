"""Looking at a bundle from outside: its manifest, the digests of its files, and headers; no tensor is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import InvalidArtifactError
from ..strict_json import read_object
from .allowlist import BUNDLE, GATED_LORA, RECOMMENDER
from .bi_tunings import (
    BI_TUNING,
    INDEX,
    ITEM_SIDE,
    USER_SIDE,
    BiTuningManifest,
    check_bi_tuning_files,
    read_bi_tuning_manifest,
)
from .bundle_facts import BundleFacts
from .bundles import AGAIN, BundleManifest, check_base, check_files, read_manifest
from .facts import BaseFacts
from .safetensors import Header, read_header
from .values import read_values

USERS = "users.weight"  # of the recommender


def inspect_bundle(
    folder: Path, base: BaseFacts | None = None, *, base_digest: str | None = None, scan: bool = True
) -> BundleFacts:
    """Everything that can be known without a tensor: digests of files, shapes against manifest and base, and with `scan` finite values.

    Raises InvalidArtifactError, and BaseMismatchError for a bundle of another base.
    """
    manifest = _manifest(folder)
    if base_digest is not None:
        check_base(folder, manifest, base_digest)
    weights = [name for name in manifest.files if name.endswith(".safetensors")]
    if isinstance(manifest, BiTuningManifest):
        check_bi_tuning_files(folder, manifest)
        headers = {name: read_header(folder / name) for name in weights}
        _check_sides(headers, manifest)
    else:
        check_files(folder, manifest)
        headers = {name: read_header(folder / name) for name in weights}
        _check_meta_loras(headers[GATED_LORA], manifest, base)
        _check_users(headers[RECOMMENDER[1]], manifest)
    if scan:
        for header in headers.values():
            read_values(header)
    return BundleFacts(
        manifest,
        tensors=sum(len(header.tensors) for header in headers.values()),
        bytes=sum(header.nbytes for header in headers.values()),
    )


def copied_bundle(folder: Path, facts: BundleFacts, *, scan: bool = True) -> bool:
    """Whether the copy in `folder` is of what was inspected, each file whole. Raises InvalidArtifactError."""
    return _manifest(folder) == facts.manifest and inspect_bundle(folder, scan=scan) == facts


def _manifest(folder: Path) -> BundleManifest | BiTuningManifest:
    if read_object(folder / BUNDLE).get("kind") == BI_TUNING:
        return read_bi_tuning_manifest(folder)
    return read_manifest(folder)


def _check_sides(headers: Mapping[str, Header], manifest: BiTuningManifest) -> None:
    """That items and users are embedded by the same tensors, and that rows and index have the manifest's width."""
    sides = [{name: each.shape for name, each in headers[side].tensors.items()} for side in (ITEM_SIDE, USER_SIDE)]
    if sides[0] != sides[1]:
        raise InvalidArtifactError(
            f"{headers[USER_SIDE].path}: has other tensors or shapes than {ITEM_SIDE}", hint=AGAIN
        )
    index = headers[INDEX].tensors.get("matrix")
    rows = [sides[0][name] for name in ("suffix", "prefix", "m_former.out.bias") if name in sides[0]]
    wrong = [shape for shape in [*rows, index.shape if index else ()] if shape[-1:] != (manifest.width,)]
    if wrong:
        raise InvalidArtifactError(
            f"{headers[ITEM_SIDE].path.parent}: has rows of {list(wrong[0])}, and its manifest says {manifest.width}",
            hint=AGAIN,
        )


def _check_meta_loras(header: Header, manifest: BundleManifest, base: BaseFacts | None) -> None:
    found = {name: tensor.shape for name, tensor in header.tensors.items()}
    for module in manifest.gates.modules:
        for part, shape in _shapes(module, manifest, found, base).items():
            name = f"{module}.{part}"
            if found.pop(name, None) != shape:
                raise InvalidArtifactError(
                    f"{header.path}: tensor {name!r} is {_shape(header, name)}, and its manifest and base say {list(shape)}",
                    hint=AGAIN,
                )
    if found:
        raise InvalidArtifactError(f"{header.path}: tensor {min(found)!r} is of no module of the manifest", hint=AGAIN)


def _shapes(
    module: str, manifest: BundleManifest, found: dict[str, tuple[int, ...]], base: BaseFacts | None
) -> dict[str, tuple[int, ...]]:
    """What each tensor of a module has to be; without a base its sizes are the meta-LoRAs' own."""
    gates = manifest.gates
    outer, inner = _sizes(module, found, base)
    return {
        "lora_A": (gates.metas, gates.rank, inner),
        "lora_B": (gates.metas, outer, gates.rank),
        "gate.norm.weight": (gates.width,),
        "gate.norm.bias": (gates.width,),
        "gate.hidden.weight": (gates.hidden, gates.width),
        "gate.hidden.bias": (gates.hidden,),
        "gate.out.weight": (gates.metas, gates.hidden),
        "gate.out.bias": (gates.metas,),
    }


def _sizes(module: str, found: dict[str, tuple[int, ...]], base: BaseFacts | None) -> tuple[int, ...]:
    if base is not None and (tensor := base.tensors.get(f"{module}.weight")) is not None:
        return tensor.info.shape
    if base is not None:
        raise InvalidArtifactError(f"the base has no module {module!r}, which the bundle has meta-LoRAs for")
    a, b = found.get(f"{module}.lora_A", ()), found.get(f"{module}.lora_B", ())
    return (b[1] if len(b) == 3 else 0, a[2] if len(a) == 3 else 0)


def _shape(header: Header, name: str) -> object:
    tensor = header.tensors.get(name)
    return "not there" if tensor is None else list(tensor.shape)


def _check_users(header: Header, manifest: BundleManifest) -> None:
    users = header.tensors.get(USERS)
    if users is None or users.shape[:1] != (manifest.users + 1,):
        raise InvalidArtifactError(
            f"{header.path}: embeds {_shape(header, USERS)} users, and its manifest says {manifest.users} and the unknown one",
            hint=AGAIN,
        )
