"""Where adapters come from: a folder, a model or run that MLflow wrote to a folder, a repository of the Hub.

MLflow is not needed: its format is an `MLmodel` file beside the model (https://mlflow.org/docs/latest/ml/model/), here as
MLflow 2.22 and 3.17 write it.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import InvalidArtifactError, UsageError
from ..strict_json import WRITTEN_LIMIT, parse_mapping, read_bytes
from .allowlist import ADAPTER_CONFIG, BUNDLE, is_bundle

MLMODEL = "MLmodel"
REGISTERED = "registered_model_meta"  # MLflow adds it to what it downloads from a `models:/` URI

_LEVELS = 2  # <run>/artifacts/<model> and models/<model>/artifacts are two below what people point at
_TEXT_LIMIT = 500
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # one letter would be a drive
_OF_THE_HUB = re.compile(r"https?://|hf://", re.IGNORECASE)
_ID = re.compile(r"(m-)?[0-9a-f]{32}")


@dataclass(frozen=True)
class AdapterSource:
    """A folder with an adapter's files, and where they come from: plain JSON without secrets, for its `context`.

    `origin` has `hub_repo` and `hub_commit`, or of `mlflow_run`,
    `mlflow_model`, `mlflow_registered` (NAME/VERSION), `mlflow_version` (MLflow's own), `mlflow_created` (UTC),
    `mlflow_base` and `mlflow_base_revision` what is known, or nothing. `unchecked` is the snapshot's, if it is one of the Hub.
    """

    folder: Path
    origin: Mapping[str, Any] = field(default_factory=dict)
    unchecked: tuple[str, ...] = ()


def find_adapter_source(source: str, *, revision: str | None = None) -> AdapterSource:
    """The adapter that `source` means: a folder or `file:` URL, otherwise ORG/NAME on the Hub at `revision`.

    A folder is a PEFT adapter's, an MLflow model's, or has exactly one of these one or two levels below. The adapter
    itself is not looked at. Raises UsageError, InvalidArtifactError (no adapter there) and what `hub.fetch` raises.
    """
    if not source.strip():
        raise UsageError("no source was named", hint="a folder, or ORG/NAME")
    path = _local(source)
    if is_folder(path):
        if revision is not None:
            raise UsageError("--revision belongs to a Hub repo, and this source is a folder")
        return _in_folder(path)
    shown = without_secrets(source)
    plain = shown == source and not source.startswith((".", "/", "~")) and not _URL.match(source)
    if not plain or source.count("/") != 1 or path.exists():
        raise UsageError(f"{shown!r} is not a folder, and not a valid name of a Hub repo", hint="a folder, or ORG/NAME")
    from .hub import fetch  # the Hub's client is slow to import

    snapshot = fetch(source, revision=revision, kind="adapter")
    return AdapterSource(
        snapshot.folder, {"hub_repo": snapshot.repo_id, "hub_commit": snapshot.commit}, snapshot.unchecked
    )


def _local(source: str) -> Path:
    """The path that is meant. Raises UsageError for URLs of what is not on this machine."""
    if not _URL.match(source):
        with suppress(RuntimeError):  # ~nobody
            return Path(source).expanduser()
        return Path(source)
    with suppress(ValueError):  # a malformed host
        url = urlsplit(source)
        if url.scheme == "file" and url.netloc in ("", "localhost") and not url.query and not url.fragment:
            return Path(unquote(url.path))
    shown = without_secrets(source)
    fetching = f"`mlflow artifacts download --artifact-uri {shlex.quote(shown)} --dst-path FOLDER`"
    raise UsageError(
        f"{shown!r} is not a folder on this machine",
        hint="name a Hub repo as ORG/NAME" if _OF_THE_HUB.match(source) else f"run {fetching}, then add FOLDER",
    )


def is_folder(path: Path) -> bool:
    """Whether a folder is there. Raises UsageError for a path that the system refuses to look at."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UsageError(f"{f'{path}':.200}: cannot be looked at: {error.strerror}") from error
    except ValueError:  # a null character
        return False


def without_secrets(text: str) -> str:
    """The text; a URL without its user, password, query and fragment, also one whose scheme was left out."""
    if "://" in text:
        return re.sub(r"[?#].*", "", re.sub(r"(://)[^/?#]*@", r"\1", text))
    return re.sub(r"^([^/?#\\]*:[^/?#\\]*@|[^/?#\\]*@(?=.*/))", "", text)


def _in_folder(folder: Path) -> AdapterSource:
    try:
        found = dict(_search(folder, _LEVELS))
    except OSError as error:
        raise InvalidArtifactError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if not found:
        raise InvalidArtifactError(
            f"{folder}: has no {ADAPTER_CONFIG}, no {BUNDLE} and no {MLMODEL} file that describes a PEFT adapter,"
            f" and neither have the folders up to {_LEVELS} levels below",
            hint="give the folder of a PEFT adapter, or of an MLflow model or run with one",
        )
    if len(found) > 1:
        names = sorted(str(place.relative_to(folder)) for place in found)
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise UsageError(
            f"{folder} holds {len(names)} adapters: {', '.join(names[:8])}{more}", hint="give the folder of one of them"
        )
    return next(iter(found.values()))


def _search(folder: Path, levels: int) -> Iterator[tuple[Path, AdapterSource]]:
    """Every adapter, by the folder to name in order to get it."""
    if _is_adapter(folder):
        yield folder, AdapterSource(folder, _origin_by_path(folder))
    elif (folder / MLMODEL).is_file():
        yield from _in_model(folder)
    elif levels:
        for below in sorted(folder.iterdir()):
            if not below.name.startswith(".") and not below.is_symlink() and below.is_dir():
                yield from _search(below, levels - 1)


def _in_model(model: Path) -> Iterator[tuple[Path, AdapterSource]]:
    """A PEFT model of the transformers flavor, or adapters among the artifacts of a pyfunc, as the Trainer logs them."""
    manifest = model / MLMODEL
    about = _read_yaml(manifest)
    flavors = _section(manifest, about, "flavors")
    transformers = _section(manifest, flavors, "transformers")
    if name := _text(manifest, transformers, "peft_adaptor"):
        folders = [_inside(manifest, name)]
    else:
        artifacts = _section(manifest, _section(manifest, flavors, "python_function"), "artifacts")
        names = [_text(manifest, _section(manifest, artifacts, key), "path") for key in artifacts]
        folders = [folder for name in names if name and _is_adapter(folder := _inside(manifest, name))]
    if not folders:
        return
    origin = {
        "mlflow_run": _text(manifest, about, "run_id"),
        "mlflow_model": _text(manifest, about, "model_id") or _text(manifest, about, "model_uuid"),
        "mlflow_registered": _registered(model),
        "mlflow_version": _text(manifest, about, "mlflow_version"),
        "mlflow_created": _text(manifest, about, "utc_time_created"),
        # not checked: the name is the one in the adapter's own config, the revision the Hub's newest when it was logged
        "mlflow_base": _text(manifest, transformers, "source_model_name"),
        "mlflow_base_revision": _text(manifest, transformers, "source_model_revision"),
    }
    if not os.path.isdir(folders[0]):  # noqa: PTH112  unlike a Path it answers for a name of any length
        place = f"{folders[0].relative_to(model)}"
        raise InvalidArtifactError(f"{manifest}: places the adapter in {place!r:.80}, which is no folder beside it")
    known = {key: without_secrets(value) if "://" in value else value for key, value in origin.items() if value}
    for folder in folders:
        yield model if len(folders) == 1 else folder, AdapterSource(folder, known)


def _registered(model: Path) -> str | None:
    path = model / REGISTERED
    if not path.is_file():
        return None
    about = _read_yaml(path)
    if type(about.get("model_version")) is int:  # after a download by alias; otherwise MLflow writes text
        about["model_version"] = str(about["model_version"])
    name, version = _text(path, about, "model_name"), _text(path, about, "model_version")
    return f"{name}/{version}" if name and version else None


def _origin_by_path(folder: Path) -> dict[str, str]:
    """What MLflow's own layout shows about files without an `MLmodel`: `<run>/artifacts/…`, `<model>/artifacts/…`."""
    for owner, name in pairwise(Path(os.path.realpath(folder)).parts):
        if name == "artifacts" and (found := _ID.fullmatch(owner)):
            return {"mlflow_model" if found[1] else "mlflow_run": owner}
    return {}


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file() or is_bundle(folder)


def _inside(manifest: Path, name: str) -> Path:
    """The folder of that name beside the manifest. Raises InvalidArtifactError if it leads elsewhere."""
    model, parts = manifest.parent, PurePosixPath(name).parts
    real = Path(os.path.realpath(model / name))
    plain = bool(parts) and parts[0] != "/" and ".." not in parts and "\\" not in name
    if not plain or not real.is_relative_to(os.path.realpath(model)):
        raise InvalidArtifactError(f"{manifest}: places the adapter in {name!r}, which is no folder beside it")
    return model / name


def _read_yaml(path: Path) -> dict[Any, Any]:
    return parse_mapping(read_bytes(path, limit=WRITTEN_LIMIT), path, foreign=True)


def _section(path: Path, about: Mapping[Any, Any], key: Any) -> dict[Any, Any]:
    """The mapping under a key; an empty one if it is not there."""
    value = about.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidArtifactError(f"{path}: {key} must be a mapping, not {_shown(value)}")
    return value


def _text(path: Path, about: Mapping[Any, Any], key: str) -> str | None:
    """The line of text under a key; None if it is not there."""
    value = about.get(key)
    if value is not None and not (isinstance(value, str) and value.isprintable() and len(value) <= _TEXT_LIMIT):
        raise InvalidArtifactError(f"{path}: {key} must be a line of text, not {_shown(value)}")
    return value


def _shown(value: object) -> str:
    # a collection by its kind alone: with aliases it may have no end
    return type(value).__name__ if isinstance(value, list | dict | set | tuple) else f"{value!r:.80}"
