"""Checkpoints on disk: shards read and written at positions, and the files beside them.

Positional reads and writes let several threads work on one shard. Nothing is mapped into memory: a file that shrinks
while it is read is an error here, where a mapping would end the process.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...registry.artifacts.allowlist import INDEX, base_files, is_card, is_tokenizer
from ...registry.artifacts.facts import BaseFacts
from ...registry.artifacts.safetensors import Header, TensorInfo
from ...registry.strict_json import OWN_LIMIT, read_object
from ..errors import MergeError
from ..recipes import DType

TORCH_DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
}
FILE_DTYPES: dict[DType, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
COPY_BYTES = 8 << 20


def torch_dtype(info: TensorInfo) -> torch.dtype:
    """The dtype of a tensor that takes part in arithmetic."""
    return torch.float64 if info.dtype == "F64" else TORCH_DTYPES[info.dtype]


def read_into(fd: int, view: memoryview, offset: int) -> None:
    """Fill `view` from the file's `offset` on. Raises MergeError when the file ends before."""
    while view:
        got = os.preadv(fd, [view], offset)
        if got == 0:
            raise MergeError("a weight file became shorter while it was read")
        view, offset = view[got:], offset + got


def write_from(fd: int, view: memoryview, offset: int) -> None:
    while view:
        wrote = os.pwrite(fd, view, offset)
        view, offset = view[wrote:], offset + wrote


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU; shared, not copied."""
    flat = tensor.detach().view(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # pyright: ignore[reportArgumentType]  numpy arrays are buffers


def copy_range(source: int, start: int, count: int, target: int, position: int) -> None:
    """Bytes from one file into another, within the kernel where it can."""
    while count:
        try:
            moved = os.copy_file_range(source, target, min(count, 1 << 30), start, position)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            _copy_by_hand(source, start, count, target, position)
            return
        if moved == 0:
            raise MergeError("a weight file became shorter while it was read")
        count, start, position = count - moved, start + moved, position + moved


def _copy_by_hand(source: int, start: int, count: int, target: int, position: int) -> None:
    view = memoryview(bytearray(min(count, COPY_BYTES)))
    for at in range(0, count, COPY_BYTES):
        piece = view[: min(COPY_BYTES, count - at)]
        read_into(source, piece, start + at)
        write_from(target, piece, position + at)


@dataclass(frozen=True)
class StoredFile:
    """A weight file of the base, open for reading."""

    header: Header
    fd: int


class Shard:
    """One weight file of a result being written: `tensors` in their order, at positions known beforehand."""

    def __init__(self, path: Path, tensors: Iterable[TensorInfo]) -> None:
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        end = 0
        for info in tensors:
            size = info.elements * TORCH_DTYPES[info.dtype].itemsize if info.dtype in TORCH_DTYPES else info.nbytes
            self.tensors[info.name] = replace(info, start=end, end=end + size)
            end += size
        self._size = end

    def __enter__(self) -> Shard:
        head = json.dumps(
            {"__metadata__": {"format": "pt"}}  # a single key: several would be written in random order by safetensors
            | {
                name: {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [t.start, t.end]}
                for name, t in self.tensors.items()
            },
            separators=(",", ":"),
        ).encode()
        head += b" " * (-len(head) % 8)
        self.data_start = 8 + len(head)
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            # Taken at once: a disk that is too small says so before any work, and threads wait less for each other.
            os.posix_fallocate(self.fd, 0, self.data_start + self._size)
            write_from(self.fd, memoryview(struct.pack("<Q", len(head)) + head), 0)
        except BaseException:
            os.close(self.fd)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def position(self, name: str) -> int:
        """Where in the file a tensor begins."""
        return self.data_start + self.tensors[name].start


def carry_other_files(
    base_folder: Path,
    base: BaseFacts,
    out: Path,
    *,
    config: Mapping[str, object],
    tokenizer: Mapping[str, Path] | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Copy what `base add` keeps beside weights verbatim, but for the card, which describes the base: (names carried, names left out).

    `config` changes keys of config.json; `tokenizer` gives files that take the place of all of the base's tokenizer.
    """
    weights = base.files
    names, left = base_files(base_folder, weights)
    sources = {
        name: base_folder / name for name in names if name not in weights and name != INDEX and not is_card(name)
    }
    if tokenizer:
        sources = {name: path for name, path in sources.items() if not is_tokenizer(name)} | dict(tokenizer)
    for name, path in sorted(sources.items()):
        target = out / name
        target.parent.mkdir(exist_ok=True)
        if name == "config.json" and config:
            _write_config(path, target, config)
        else:
            shutil.copyfile(path, target)
    return tuple(sorted(sources)), tuple(sorted({*left} | {*names} - sources.keys() - weights - {INDEX}))


def _write_config(source: Path, target: Path, changes: Mapping[str, object]) -> None:
    content = changed_config(read_object(source, limit=OWN_LIMIT), changes)
    target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def changed_config(content: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """config.json with other values. A change goes to the nested text model's configuration too, where the key is there.

    The size of the vocabulary goes there also where neither has it, which then was the text model's default.
    """
    changed = dict(content)
    for key, value in changes.items():
        name = "torch_dtype" if key == "dtype" and "torch_dtype" in changed else key
        changed[name] = value
        inner = changed.get("text_config")
        if isinstance(inner, dict) and (name in inner or (name == "vocab_size" and name not in content)):
            changed["text_config"] = {**inner, name: value}
    return changed


def write_index(source: Path, target: Path, shards: Mapping[str, Iterable[TensorInfo]], *, changed: bool) -> None:
    """The index of a sharded result: the base's own, verbatim unless names or sizes have changed."""
    if not changed:
        shutil.copyfile(source, target)
        return
    content = read_object(source, limit=OWN_LIMIT)
    files = {info.name: file for file, tensors in shards.items() for info in tensors}
    kept = [name for name in content["weight_map"] if name in files]
    content["weight_map"] = {name: files[name] for name in (*kept, *sorted(files.keys() - set(kept)))}
    content.setdefault("metadata", {})["total_size"] = sum(t.nbytes for tensors in shards.values() for t in tensors)
    target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
