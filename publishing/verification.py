"""Whether a published folder matches its provenance: digests in provenance.json, the signature, and what the registry knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..registry.artifacts.allowlist import BUNDLE, is_of_bundle, is_published
from ..registry.catalog.filters import BuildFilter
from ..registry.catalog.publications import SIGNATURE
from ..registry.digests import file_digest
from ..registry.errors import InvalidArtifactError, NotFoundError, RecCocktailError
from ..registry.registry import Registry
from ..registry.strict_json import read_object
from .upload import is_loaded

PROVENANCE = "provenance.json"
CARD = "README.md"
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx")
CODE = (
    "*.py", "*.pyc", "*.pyd", "*.ipynb", "*.so", "*.dll", "*.dylib", "*.exe", "*.sh", "*.bat", "*.cmd", "*.ps1", "*.js", "*.jinja",
)  # what runs, in whatever folder it lies  # fmt: skip
_WRITTEN_ANEW = (CARD, PROVENANCE, SIGNATURE, "adapter_config.json")  # when something is published


@dataclass(frozen=True)
class Verification:
    """What was found: `problems` make it unsound, `notes` a reader should know.

    `signature` is none, unchecked, sound, partial (sound, of less than what would be used) or broken.
    """

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
            problems.append(f"{name} differs from provenance.json: its digest is {found}, not {digest}")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    there -= {".gitattributes", SIGNATURE}
    covered = {*subjects, PROVENANCE, CARD}
    reported: set[str] = set()
    signature = "none"
    if (folder / SIGNATURE).is_file():
        from . import signing

        signed = signing.signed_files(folder)
        signature = "unchecked"
        if key is not None:
            wrong = signing.verify(folder, key)
            problems += [f"the signature: {each}" for each in wrong]
            # A sound signature says nothing of what it does not name, be it of another folder or of a part of this one.
            unsigned = sorted(there - signed)
            open_ = [path for path in unsigned if path in subjects or path == PROVENANCE or _is_used(path)]
            problems += [f"the signature: {path} is not signed" for path in open_]
            notes += [f"{path} is not signed" for path in unsigned if path not in open_]
            covered |= set(unsigned)
            reported = set(unsigned)
            signature = "broken" if wrong else "partial" if open_ else "sound"
        else:
            notes.append("it is signed; --key PUBLIC_KEY checks the signature")
        covered |= signed
    elif key is not None:
        problems.append("it is not signed")
    for path in sorted(there & covered):
        if not is_published(path):  # a program is not part of a model, even if provenance.json lists it
            runs = _is_like(path, WEIGHTS) or _is_like(path, CODE)
            if runs:
                problems.append(f"{path} is not a file of a model or adapter that RecCocktail publishes")
            elif path not in reported:
                notes.append(f"{path} is not a file of a model or adapter that RecCocktail publishes")
    for path in sorted(there - covered):
        if _is_used(path):
            problems.append(f"{path} is not listed in provenance.json, and would be loaded")
        else:
            notes.append(f"{path} is not listed in provenance.json")
    return Verification(len(there), tuple(problems), tuple(notes), signature, statement)


def known_as(registry: Registry, statement: Mapping[str, Any]) -> str | None:
    """Which build or adapter version of the registry a provenance statement is about: `build ID` or its reference."""
    definition = statement["predicate"]["buildDefinition"]
    given, made_of = definition["externalParameters"], _digests(definition["resolvedDependencies"])
    if isinstance(about := given.get("adapter"), dict):
        for base in registry.bases.list():
            try:
                adapter = registry.adapters.resolve(str(about.get("ref")), base=base.name, kind=None)
            except RecCocktailError:
                continue
            same = adapter.digest == about.get("digest") and base.digest == made_of.get("base")
            if same and _is_of(registry, statement, adapter.digest):
                return adapter.ref
        return None
    after = None
    try:
        while page := registry.builds.list(
            BuildFilter(domain=str(given.get("domain")), status="succeeded"), limit=200, after=after
        ):
            for build in page:
                its = {entry["digest"] for entry in build.inputs["adapters"]} | {build.inputs["base"]["digest"]}
                if its == set(made_of.values()) and build.digest and _is_of(registry, statement, build.digest):
                    return f"build {build.id}"
            after = page[-1].id
    except NotFoundError:  # no such domain
        return None
    return None


def _is_of(registry: Registry, statement: Mapping[str, Any], digest: str) -> bool:
    """Whether the statement's subjects are, file by file, what the store keeps under a digest, weights among them."""
    if not registry.store.has(digest):
        return False
    subjects = _digests(statement["subject"])
    kept = {name: f"sha256:{entry.sha256}" for name, entry in registry.store.tree(digest).files.items()}
    counts = is_of_bundle if BUNDLE in kept else is_published  # a bundle's papers stay here
    mine, its = (
        {name: each for name, each in files.items() if counts(name) and name not in _WRITTEN_ANEW}
        for files in (subjects, kept)
    )
    return mine == its and any(_is_like(name, WEIGHTS) for name in its)


def _is_used(path: str) -> bool:
    """Whether a loader would take the file for a part of the model, or could run it."""
    if path == CARD:
        return False
    return is_loaded(path) or _is_like(path, WEIGHTS) or _is_like(path, CODE)


def _is_like(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path.lower(), pattern) for pattern in patterns)


def _statement(folder: Path, problems: list[str]) -> dict[str, Any] | None:
    path = folder / PROVENANCE
    if not path.is_file():
        problems.append(f"there is no {PROVENANCE}")
        return None
    try:
        found = read_object(path)
        if found["_type"] != "https://in-toto.io/Statement/v1":
            raise ValueError(f"of type {found['_type']!r:.80}")
        definition = found["predicate"]["buildDefinition"]
        if not found["subject"]:
            raise ValueError("it lists no file")
        for entries in (found["subject"], definition["resolvedDependencies"]):
            _digests(entries)
        dict(definition["externalParameters"])
    except (InvalidArtifactError, ValueError, KeyError, TypeError) as error:
        problems.append(f"{PROVENANCE} is not an in-toto statement of RecCocktail: {error}")
        return None
    return found


def _subjects(statement: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    found = {}
    for name, digest in _digests(statement["subject"]).items():
        parts = Path(name).parts
        too_long = any(len(part.encode("utf-8", "replace")) > 255 for part in parts) or len(name) > 1000
        if name.startswith("/") or ".." in parts or "\0" in name or too_long:
            problems.append(f"provenance.json names {name[:80]!r}, which is not in the folder")
        else:
            found[name] = digest
    return found


def _digests(entries: Any) -> dict[str, str]:
    return dict(_named(entries))


def _named(entries: Any) -> Iterator[tuple[str, str]]:
    for entry in entries:
        yield str(entry["name"]), f"sha256:{entry['digest']['sha256']}"
