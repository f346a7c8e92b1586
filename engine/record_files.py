"""What is kept of an evaluation beside its row: tensors in one safetensors file in the store, checked against the digest in the row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..registry import Registry
from ..registry.catalog.evaluations import EvaluationRecord, Measurement
from ..registry.errors import RecCocktailError, StoreError

REPAIR = "run `reccocktail store verify`, then evaluate again"


def add_record(registry: Registry, key: str, measurement: Callable[[], Measurement]) -> tuple[int | None, str | None]:
    """The id of the row under the key, which is added unless it is there with its files; else why it could not be recorded.

    That is nothing to the figures. `measurement` stores its files, and is called for a new row alone.
    """
    try:
        if (known := registry.evaluations.by_key(key)) is not None and registry.store.has(known.ranks):
            return known.id, None
        row = registry.evaluations.add(measurement())
    except (RecCocktailError, OSError) as error:
        return None, f"it was not recorded in the registry: {error}"
    return row.id, None


def store_tensors(registry: Registry, file: str, tensors: Mapping[str, np.ndarray]) -> str:
    """The digest of the tree that holds the file."""
    with registry.store.staging("ranks") as folder:
        (folder / file).write_bytes(save(dict(tensors)))
        return registry.store.adopt(folder).digest


def stored_tensors(registry: Registry, row: EvaluationRecord, file: str) -> Mapping[str, np.ndarray]:
    """Of the file, whose bytes are those of its digest. Raises StoreError."""
    folder = registry.store.folder(row.ranks)
    entry = registry.store.tree(row.ranks).files.get(file)
    where = f"evaluation {row.id}: its {file.removesuffix('.safetensors')} ({row.ranks})"
    try:
        data = (folder / file).read_bytes()
        if entry is None or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise StoreError(f"{where} are damaged in the store", hint=REPAIR)
        return load(data)
    except OSError as error:
        raise StoreError(f"{where} cannot be read: {error.strerror}", hint=REPAIR) from error
    except SafetensorError as error:
        raise StoreError(f"{where} are no safetensors file: {error}", hint=REPAIR) from error
