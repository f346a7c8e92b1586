"""What a repository of the Hub holds at one commit: its files, and whether they are a model, an adapter or a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, RepoFile

from ..registry.artifacts.hub import explained, listing
from ..registry.digests import git_blob_id

Kind = Literal["adapter", "model", "dataset"]
Change = Literal["new", "changed", "same"]
OF_THE_HUB = (".gitattributes", ".gitignore")
ADAPTER = ("adapter_config.json", "adapter_model.*", "bundle.json")  # in the repository's own folder
_MODEL = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "consolidated*",
    "tf_model*.h5",
    "flax_model*.msgpack",
    "model_index.json",
    "*.gguf",
    "*.onnx",
)
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
_DATA = ("*.parquet", "*.arrow", "*.csv", "*.tsv", "*.jsonl", "*.jsonl.*", "*.tfrecord", "dataset_infos.json", "dataset_dict.json")  # fmt: skip
NAMES: dict[Kind, str] = {"adapter": "an adapter", "model": "a model", "dataset": "a dataset"}


@dataclass(frozen=True)
class PlannedFile:
    path: str  # relative to the folder, with slashes
    bytes: int
    sha256: str  # hex
    change: Change | None = None  # against the repository; None where the Hub was not asked


def tree(repo: str, commit: str) -> dict[str, RepoFile]:
    """Every file by its path. Raises HubError."""
    with explained("look at", repo):
        return listing(repo, commit)


def read(repo: str, path: str, commit: str) -> bytes:
    """Raises HubError."""
    with explained("look at", repo):
        return Path(HfApi().hf_hub_download(repo, path, revision=commit)).read_bytes()


def sha256(repo: str, file: RepoFile, commit: str) -> str:
    """In hex. A file that is not in LFS is fetched for it: the Hub lists its git hash only. Raises HubError."""
    return file.lfs.sha256 if file.lfs is not None else hashlib.sha256(read(repo, file.path, commit)).hexdigest()


def change(file: PlannedFile, folder: Path, there: Mapping[str, RepoFile]) -> Change:
    """What the file of a folder would be in a repository with these files."""
    if (remote := there.get(file.path)) is None:
        return "new"
    if remote.lfs is not None:
        same = remote.lfs.sha256 == file.sha256
    else:
        same = remote.size == file.bytes and remote.blob_id == git_blob_id(folder / file.path)
    return "same" if same else "changed"


def kinds(paths: Collection[str]) -> dict[Kind, str]:
    """What lies there, by its kind, each with the path that shows it; nothing for notes, pictures and the like."""
    found: dict[Kind, str] = {}
    for path in sorted(paths):
        name = path.rpartition("/")[2]
        if path == name and _is_like(name, ADAPTER):
            found.setdefault("adapter", path)
        elif _is_like(name, _MODEL):
            found.setdefault("model", path)
        elif _is_like(name, _DATA):
            found.setdefault("dataset", path)
    if not found:  # weights by no known name; beside an adapter they are what its trainer left
        weights = [path for path in sorted(paths) if "/" not in path and _is_like(path, _WEIGHTS)]
        return {"model": weights[0]} if weights else {}
    return found


def _is_like(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatch(name.lower(), pattern) for pattern in patterns)
