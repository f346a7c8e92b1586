"""Whether a published folder is what its papers say: digests against provenance.json, the signature, and what the registry knows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .digests import file_digest
from .errors import NotFoundError, RecCocktailError
from .publications import SIGNATURE
from .publishing import is_loaded
from .registry import Registry

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Verification:
    """What was found: `problems` make it unsound, `notes` a reader should know. `signature` is none, unchecked, sound or broken."""

    files: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    signature: str
    statement: Mapping[str, Any] | None


def verify(folder: Path, *, key: Path | None = None) -> Verification:
    """Reads every file that the provenance names, and checks the signature with a public key. Raises UsageError for the key."""
    problems: list[str] = []
    notes: list[str] = []
    statement = _statement(folder, problems)
    subjects = {} if statement is None else _subjects(statement, problems)
    for name, digest in subjects.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (found := file_digest(path)) != digest:
            problems.append(f"{name} is not what provenance.json says: {found}, there {digest}")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    there -= {".gitattributes", SIGNATURE}
    covered = set(subjects) | {PROVENANCE}
    signature = "none"
    if (folder / SIGNATURE).is_file():
        from . import signing

        covered |= signing.signed_files(folder)
        signature = "unchecked"
        if key is not None:
            wrong = signing.verify(folder, key)
            signature = "broken" if wrong else "sound"
            problems += [f"the signature: {each}" for each in wrong]
        else:
            notes.append("it is signed; --key PUBLIC_KEY checks the signature")
    elif key is not None:
        problems.append("it is not signed")
    for path in sorted(there - covered):
        if is_loaded(path) and path != "README.md":
            problems.append(f"{path} is in no paper, and would be loaded")
        elif path != "README.md":
            notes.append(f"{path} is in no paper")
    return Verification(len(there), tuple(problems), tuple(notes), signature, statement)


def known_as(registry: Registry, statement: Mapping[str, Any]) -> str | None:
    """Which build or adapter version of the registry a provenance statement is about: `build ID` or its reference."""
    definition = statement["predicate"]["buildDefinition"]
    given, made_of = definition["externalParameters"], _digests(definition["resolvedDependencies"])
    if isinstance(about := given.get("adapter"), dict):
        for base in registry.bases.list():
            try:
                adapter = registry.adapters.resolve(str(about.get("ref")), base=base.name)
            except RecCocktailError:
                continue
            if adapter.digest == about.get("digest") and base.digest == made_of.get("base"):
                return adapter.ref
        return None
    weights = {n: d for n, d in _digests(statement["subject"]).items() if n.endswith(".safetensors")}
    after = None
    try:
        while page := registry.builds.list(domain=str(given.get("domain")), status="succeeded", limit=200, after=after):
            for build in page:
                its = {entry["digest"] for entry in build.inputs["adapters"]} | {build.inputs["base"]["digest"]}
                if its == set(made_of.values()) and build.digest and registry.store.has(build.digest):
                    files = registry.store.tree(build.digest).files
                    if all(name in files and f"sha256:{files[name].sha256}" == d for name, d in weights.items()):
                        return f"build {build.id}"
            after = page[-1].id
    except NotFoundError:  # no such domain
        return None
    return None


def _statement(folder: Path, problems: list[str]) -> dict[str, Any] | None:
    path = folder / PROVENANCE
    if not path.is_file():
        problems.append(f"there is no {PROVENANCE}")
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["_type"] != "https://in-toto.io/Statement/v1":
            raise ValueError(f"of type {found['_type']!r:.80}")
        definition = found["predicate"]["buildDefinition"]
        for entries in (found["subject"], definition["resolvedDependencies"]):
            _digests(entries)
        dict(definition["externalParameters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"{PROVENANCE} is no in-toto statement of ours: {error}")
        return None
    return found


def _subjects(statement: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    found = {}
    for name, digest in _digests(statement["subject"]).items():
        if name.startswith("/") or ".." in Path(name).parts:
            problems.append(f"provenance.json names {name!r}, which is no file of the folder")
        else:
            found[name] = digest
    return found


def _digests(entries: Any) -> dict[str, str]:
    return dict(_named(entries))


def _named(entries: Any) -> Iterator[tuple[str, str]]:
    for entry in entries:
        yield str(entry["name"]), f"sha256:{entry['digest']['sha256']}"
