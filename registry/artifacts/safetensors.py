"""Safetensors headers, read strictly and without loading a tensor.

Format: https://huggingface.co/docs/safetensors/index#format — 8 bytes little-endian header length, a JSON header, the data.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidArtifactError
from ..strict_json import parse_object, shown

# Half of the reference implementation's limit: JSON takes up to 25 times its size once it is parsed, and this bounds that
# by 1.3 GB. It is room for 300,000 tensors, three times what the largest mixtures of experts have in all their files.
HEADER_LIMIT = 50_000_000
NAME_LIMIT = 1_000  # characters; names are dotted attributes, and what is done with them takes time by their length
BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}

_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file; `start` and `end` are bytes from the beginning of the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself; a tensor's bytes begin at `data_start + start` of the file."""

    path: Path
    tensors: dict[str, TensorInfo]
    data_start: int
    metadata: dict[str, str]
    size: int
    digest: bytes = b""
    """The SHA-256 of the header as it was read: two files with the same one have tensors of the same names, shapes and places."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return self.size - self.data_start


def read_header(path: Path | str) -> Header:
    """Raises InvalidArtifactError where header and file disagree with each other or with the format."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8:
                raise InvalidArtifactError(f"{path}: {size} bytes are too few for a safetensors file")
            if length > HEADER_LIMIT:
                raise _no_header(path, prefix, length)
            if length > size - 8:
                raise InvalidArtifactError(
                    f"{path}: header of {length} bytes goes beyond the file of {size}: truncated?"
                )
            text = file.read(length)
    except OSError as error:
        raise InvalidArtifactError(f"{path}: cannot be read: {error.strerror}") from error

    if not text.startswith(b"{"):  # the format wants it first, so that no white space can hide what follows
        raise InvalidArtifactError(f"{path}: its header begins with {text[:1]!r}, not with '{{'")
    raw = parse_object(text, path)
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidArtifactError(f"{path}: __metadata__ must map text to text")
    tensors = {name: _tensor(path, name, entry) for name, entry in raw.items()}
    _check_layout(path, list(tensors.values()), size - 8 - length)
    return Header(path, tensors, 8 + length, metadata, size, _digest(size, text))


def header_digest(path: Path) -> bytes:
    """The `digest` that the header of the file would have, without parsing it. Raises InvalidArtifactError."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            return _digest(size, file.read(min(length, HEADER_LIMIT)))
    except OSError as error:
        raise InvalidArtifactError(f"{path}: cannot be read: {error.strerror}") from error


def _digest(size: int, text: bytes) -> bytes:
    return hashlib.sha256(f"{size} {len(text)} ".encode() + text).digest()


def _no_header(path: Path, prefix: bytes, length: int) -> InvalidArtifactError:
    if prefix == b"version ":
        return InvalidArtifactError(
            f"{path}: is a Git LFS pointer, not the weights themselves", hint="fetch them with `git lfs pull`"
        )
    what = "a pickle" if prefix.startswith((b"PK\3\4", b"\x80")) else "no safetensors file, or a broken one"
    return InvalidArtifactError(f"{path}: header of {length} bytes is over the limit of {HEADER_LIMIT}: this is {what}")


def _tensor(path: Path, name: str, entry: Any) -> TensorInfo:
    def refused(what: str) -> InvalidArtifactError:
        return InvalidArtifactError(f"{path}: tensor {shown(name)} {what}")

    if len(name) > NAME_LIMIT:
        raise refused(f"has a name of {len(name)} characters, over the limit of {NAME_LIMIT}")
    if not name.isprintable():
        raise refused("has control or invisible characters in its name")
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise refused("must have dtype, shape and data_offsets, nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise refused(f"has the unknown dtype {shown(dtype)}")
    if not _is_sizes(shape):
        raise refused(f"has the impossible shape {shown(shape)}")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refused(f"has the impossible data_offsets {shown(offsets)}")
    if any(size >= 2**63 for size in itertools.accumulate(shape, operator.mul)):
        # also before a 0, where readers that multiply in 64 bits overflow
        raise refused(f"has the impossible shape {shown(shape)}")
    info = TensorInfo(name, dtype, tuple(shape), *offsets)
    if info.elements * BITS[dtype] != info.nbytes * 8:
        raise refused(f"of {dtype} and shape {shown(shape)} does not take the {info.nbytes} bytes given to it")
    return info


def _is_sizes(value: Any) -> bool:
    # 2**63 bounds what any reader could address, and keeps products of hostile shapes small
    return isinstance(value, list) and len(value) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_layout(path: Path, tensors: list[TensorInfo], data: int) -> None:
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != end:
            what = "overlaps the one before it" if tensor.start < end else "leaves a hole before it"
            raise InvalidArtifactError(
                f"{path}: tensor {shown(tensor.name)} at {tensor.start} {what}, which ends at {end}"
            )
        end = tensor.end
    if end != data:
        what = "truncated" if end > data else "bytes that no tensor owns"
        raise InvalidArtifactError(f"{path}: tensors end at {end} but the data section at {data}: {what}")
