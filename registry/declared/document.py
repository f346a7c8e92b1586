"""The file that `apply` reads: bases, recipes, domains, adapters, aliases and policies, checked whole before anything is written.

Every problem is reported with its line (YAML) or its key (JSON), all of them at once. What the file does not name stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..catalog.gates import Requirement
from ..catalog.references import SPIRIT, Reference, check_name, did_you_mean, near_name
from ..catalog.serving import PROMOTIONS
from ..errors import RecCocktailError, UsageError
from ..store.trees import is_tree
from ..strict_json import parse_written, shown
from ..strict_yaml import parse_with_lines
from ..webhooks.hooks import WebhookFields
from ..webhooks.signing import reference
from .problems import Place, Problems

LIMIT = 16 << 20  # bytes; of YAML a megabyte takes some ten seconds to read, JSON a tenth of one

_VERSION = re.compile(r"v([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class BaseEntry:
    """`files` is a folder with the bytes, for a source that is not to be fetched; `digest` is what they must be."""

    name: str
    place: Place
    source: str | None = None
    revision: str | None = None
    files: str | None = None
    digest: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RecipeEntry:
    """One version of a recipe or of a prompt template: the path of a file, or the content itself."""

    kind: Literal["recipe", "template"]
    name: str
    place: Place
    file: str | None = None
    content: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class DomainEntry:
    """`data` is a folder or the digest of a tree; of a tree, `files` is a folder that has the bytes, for a store that lacks it."""

    name: str
    place: Place
    title: str | None = None
    data: str | None = None
    files: str | None = None
    trainer: str | None = None
    recipe: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def given(self) -> dict[str, str]:
        fields = {"title": self.title, "data": self.data, "trainer": self.trainer, "recipe": self.recipe}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class AdapterEntry:
    """One version. `domain` is `spirit` for a spirit; `version`, where it is given, is the number that it must get."""

    place: Place
    base: str
    domain: str
    source: str | None = None
    revision: str | None = None
    files: str | None = None
    digest: str | None = None
    version: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] | None = None
    aliases: list[str] = field(default_factory=list)
    archived: bool | None = None
    allow_base_mismatch: bool = False
    allow_partial: bool = False
    scan: bool = True

    @property
    def role(self) -> Literal["spirit", "ingredient"]:
        return "spirit" if self.domain == SPIRIT else "ingredient"


@dataclass(frozen=True)
class AliasEntry:
    """`NAME@ALIAS: vN`; `base` is None where the registry has only one."""

    place: Place
    domain: str
    alias: str
    version: int
    base: str | None = None


@dataclass(frozen=True)
class GateWish:
    """A gate that asks for nothing is none."""

    require: Requirement | None = None
    approvals: int = 0


@dataclass(frozen=True)
class PolicyEntry:
    """Of a domain: its gate, the alias of builds that it serves, and how builds are promoted. What is None stays as it is."""

    name: str
    place: Place
    gate: GateWish | None = None
    serve: str | None = None
    promote: str | None = None


@dataclass(frozen=True)
class WebhookEntry:
    """What is None of its fields stays as it is, or is as `webhook add` has it; one that is new is off unless `active` is true."""

    name: str
    place: Place
    fields: WebhookFields


@dataclass(frozen=True)
class Document:
    bases: tuple[BaseEntry, ...] = ()
    recipes: tuple[RecipeEntry, ...] = ()
    domains: tuple[DomainEntry, ...] = ()
    adapters: tuple[AdapterEntry, ...] = ()
    aliases: tuple[AliasEntry, ...] = ()
    policies: tuple[PolicyEntry, ...] = ()
    webhooks: tuple[WebhookEntry, ...] = ()


def parse_document(data: bytes, *, name: str, folder: Path, suffix: str = ".yaml") -> Document:
    """What the file called `name` says; paths in it are relative to `folder`. Raises UsageError with every problem."""
    if len(data) > LIMIT:
        raise UsageError(f"{name}: is larger than the {LIMIT} bytes that are allowed here")
    try:
        content, lines = (parse_written(data, suffix), {}) if suffix == ".json" else parse_with_lines(data)
    except ValueError as error:
        raise UsageError(f"{name}: is not valid {'JSON' if suffix == '.json' else 'YAML'}: {error}") from error
    problems = Problems(name, lines)
    document = _Reader(problems, folder).read({} if content is None else content)
    problems.raise_any()
    return document


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a text")
    return value


def _lone_text(value: Any) -> str:
    if isinstance(value, str):
        return value  # a note may be empty
    raise ValueError("must be a text")


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not is_tree(value):
        raise ValueError("must be sha256: and 64 hexadecimal digits")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _number(value: Any) -> int:
    if isinstance(value, str) and (found := _VERSION.fullmatch(value)):
        return int(found[1])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**9:
        raise ValueError("must be a version, such as 3 or v3")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be a mapping")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("must be a list of texts")
    return value


def _aliases(value: Any) -> list[str]:
    return [check_name("alias", name) for name in _texts(value)]


def _alias(value: Any) -> str:
    return check_name("alias", _text(value))


def _promotion(value: Any) -> str:
    if value not in PROMOTIONS:
        raise ValueError(f"must be {' or '.join(PROMOTIONS)}")
    return value


def _gate(value: Any) -> GateWish:
    if value is False:
        return GateWish()
    if not isinstance(value, dict) or not value or value.keys() - {"require", "approvals"}:
        raise ValueError("must be false, or a mapping with require, approvals or both")
    approvals = value.get("approvals", 0)
    if isinstance(approvals, bool) or not isinstance(approvals, int) or not 0 <= approvals < 100:
        raise ValueError("needs a number of approvals")
    require = value.get("require")
    return GateWish(None if require is None else Requirement.read(require), approvals)


def _secret(value: Any) -> str:
    """Where it is, and never what it is."""
    kind, _, name = _text(value).partition(":")
    if kind not in ("env", "file") or not name:
        raise ValueError("must say where the secret is: env:VARIABLE or file:/PATH")
    return reference(name if kind == "env" else None, Path(name) if kind == "file" else None)


_ABOUT: dict[str, Callable[[Any], Any]] = {
    "description": _lone_text,
    "note": _lone_text,
    "tags": _texts,
    "metrics": _mapping,
    "links": _mapping,
}
_SOURCE: dict[str, Callable[[Any], Any]] = {"source": _text, "revision": _text, "files": _text, "digest": _digest}
_KEYS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "bases": _SOURCE | _ABOUT,
    "domains": {"title": _text, "data": _text, "files": _text, "trainer": _text, "recipe": _text, **_ABOUT},
    "adapters": {
        "base": _text,
        "domain": _text,
        "spirit": _truth,
        **_SOURCE,
        "version": _number,
        **_ABOUT,
        "context": _mapping,
        "aliases": _aliases,
        "archived": _truth,
        "allow_base_mismatch": _truth,
        "allow_partial": _truth,
        "scan": _truth,
    },
    "policies": {"gate": _gate, "serve": _alias, "promote": _promotion},
    "webhooks": {
        "url": _text,
        "kinds": _texts,
        "domains": _texts,
        "secret": _secret,
        "allow_private": _truth,
        "active": _truth,
    },
}
"""What can stand in an entry of each section, and how its value is read."""

SECTIONS = ("bases", "templates", "recipes", "domains", "adapters", "aliases", "policies", "webhooks")


def _section(key: str) -> str:
    """That what is called so is written elsewhere in the file, where it is."""
    near = near_name(str(key), SECTIONS)
    return "" if near is None else f"; there is a section {near!r} for that"


class _Reader:
    def __init__(self, problems: Problems, folder: Path) -> None:
        self._problems = problems
        self._folder = folder

    def read(self, content: Any) -> Document:
        if not isinstance(content, dict):
            self._problems.add((), f"must be a mapping with {', '.join(SECTIONS)}, not a {type(content).__name__}")
            return Document()
        for key in content:
            if key not in SECTIONS:
                self._problems.add((key,), f"unknown section{did_you_mean(str(key), SECTIONS)}")
        document = Document(
            tuple(self._bases(content)),
            (*self._recipes(content, "templates", "template"), *self._recipes(content, "recipes", "recipe")),
            tuple(self._domains(content)),
            tuple(self._adapters(content)),
            tuple(self._aliases(content)),
            tuple(self._policies(content)),
            tuple(self._webhooks(content)),
        )
        self._each_once(document)
        return document

    def _bases(self, content: Mapping[str, Any]) -> Iterator[BaseEntry]:
        for name, place, given in self._named(content, "bases", "base"):
            if given.keys() & {"source", "files", "digest"}:
                yield BaseEntry(name, place, **self._located(given))
            else:
                self._problems.add(place.path, "needs a source: a folder, ORG/NAME, or package:NAME")

    def _recipes(
        self, content: Mapping[str, Any], section: str, kind: Literal["recipe", "template"]
    ) -> Iterator[RecipeEntry]:
        for name, entry in self._entries(content, section, kind):
            several = isinstance(entry, list)
            for number, version in enumerate(entry if several else [entry]):
                path = (section, name, number) if several else (section, name)
                place = self._problems.place(path)
                if isinstance(version, str) and version.strip():
                    yield RecipeEntry(kind, name, place, file=str(self._path(version)))
                elif isinstance(version, dict):
                    yield RecipeEntry(kind, name, place, content=version)
                else:
                    self._problems.add(path, f"must be a file or what the {kind} says, or a list of its versions")

    def _domains(self, content: Mapping[str, Any]) -> Iterator[DomainEntry]:
        for name, place, given in self._named(content, "domains", "domain"):
            if "data" in given:
                given["data"] = given["data"] if is_tree(given["data"]) else str(self._path(given["data"]))
            if "files" in given and not is_tree(given.get("data", "")):
                self._problems.add((*place.path, "files"), "belongs to `data: sha256:…`; write the folder as `data`")
                continue
            given = self._located(given)
            if "recipe" in given and Path(given["recipe"]).suffix:
                given["recipe"] = str(self._path(given["recipe"]))
            yield DomainEntry(name, place, **given)

    def _adapters(self, content: Mapping[str, Any]) -> Iterator[AdapterEntry]:
        section = content.get("adapters", [])
        if not isinstance(section, list):
            self._problems.add(("adapters",), "must be a list: each entry begins with a - and is one version")
            return
        for number, entry in enumerate(section):
            path = ("adapters", number)
            given = self._given(path, entry, "adapters")
            if given is None:
                continue
            spirit, domain = given.pop("spirit", False), given.pop("domain", None)
            if spirit == (domain is not None):
                self._problems.add(path, "needs either `domain: NAME` or `spirit: true`")
            elif "base" not in given:
                self._problems.add(path, "needs its base model: `base: NAME`")
            elif not given.keys() & {"source", "files", "digest"}:
                self._problems.add(path, "needs a source: a folder, or ORG/NAME")
            elif domain == SPIRIT:
                self._problems.add((*path, "domain"), "'spirit' is reserved for the base spirit: write `spirit: true`")
            else:
                yield AdapterEntry(
                    self._problems.place(path), domain=SPIRIT if spirit else domain, **self._located(given)
                )

    def _aliases(self, content: Mapping[str, Any]) -> Iterator[AliasEntry]:
        section = content.get("aliases", {})
        if not isinstance(section, dict):
            self._problems.add(("aliases",), "must be a mapping of NAME@ALIAS to a version")
            return
        for key, value in section.items():
            path = ("aliases", key)
            base, _, text = key.rpartition(":")
            try:
                ref, version = Reference.parse(text), _number(value)
            except (RecCocktailError, ValueError) as error:
                self._problems.add(path, str(error))
                continue
            if ref.alias is None:
                self._problems.add(path, "names no alias: write NAME@ALIAS, or BASE:NAME@ALIAS with several bases")
            else:
                yield AliasEntry(self._problems.place(path), ref.name, ref.alias, version, base or None)

    def _policies(self, content: Mapping[str, Any]) -> Iterator[PolicyEntry]:
        for name, entry in self._entries(content, "policies", "domain"):
            given = self._given(("policies", name), entry, "policies")
            if given is not None:
                del given["about"]
                yield PolicyEntry(name, self._problems.place(("policies", name)), **given)

    def _webhooks(self, content: Mapping[str, Any]) -> Iterator[WebhookEntry]:
        for name, entry in self._entries(content, "webhooks", "webhook"):
            given = self._given(("webhooks", name), entry, "webhooks")
            if given is not None:
                del given["about"]
                yield WebhookEntry(name, self._problems.place(("webhooks", name)), WebhookFields(**given))

    def _named(
        self, content: Mapping[str, Any], section: str, kind: Literal["base", "domain"]
    ) -> Iterator[tuple[str, Place, dict[str, Any]]]:
        for name, entry in self._entries(content, section, kind):
            path = (section, name)
            # `beauty:` alone is a domain without anything
            given = self._given(path, {} if entry is None and kind == "domain" else entry, section)
            if given is not None:
                yield name, self._problems.place(path), given

    def _entries(
        self, content: Mapping[str, Any], section: str, kind: Literal["base", "domain", "recipe", "template", "webhook"]
    ) -> Iterator[tuple[str, Any]]:
        """The entries of a section that is a mapping of names, those with names that can be."""
        entries = content.get(section, {})
        if not isinstance(entries, dict):
            self._problems.add((section,), f"must be a mapping: the name of a {kind}, then what it has")
            return
        for name, entry in entries.items():
            try:
                check_name(kind, name)
            except UsageError as error:
                self._problems.add((section, name), f"{error}; {error.hint}")
            else:
                yield name, entry

    def _given(self, path: tuple[Any, ...], entry: Any, section: str) -> dict[str, Any] | None:
        """The entry's values; None where there is a problem with one."""
        keys = _KEYS[section]
        if not isinstance(entry, dict):
            self._problems.add(path, f"must be a mapping with {', '.join(keys)}, not {shown(entry)}")
            return None
        before, found = self._problems.count, {}
        for key, value in entry.items():
            if key not in keys:
                self._problems.add((*path, key), f"unknown key{did_you_mean(key, keys) or _section(key)}")
                continue
            try:
                found[key] = keys[key](value)
            except (ValueError, RecCocktailError) as error:
                self._problems.add((*path, key), f"{error}, not {shown(value)}")
        if self._problems.count > before:
            return None
        return {"about": {key: found.pop(key) for key in _ABOUT if key in found}} | found

    def _located(self, given: dict[str, Any]) -> dict[str, Any]:
        """With absolute paths, also of a source that is a folder beside the file."""
        if "files" in given:
            given["files"] = str(self._path(given["files"]))
        source = given.get("source")
        if source is not None and (source.startswith((".", "/", "~")) or self._path(source).is_dir()):
            given["source"] = str(self._path(source))
        return given

    def _path(self, text: str) -> Path:
        try:
            path = Path(text).expanduser()
        except RuntimeError:  # ~nobody
            path = Path(text)
        return (self._folder / path).resolve()

    def _each_once(self, document: Document) -> None:
        """An alias is on one version, and a version is one entry."""
        seen: dict[tuple[object, ...], Place] = {}
        for entry in document.adapters:
            numbered = [("version", entry.base, entry.domain, entry.version)] if entry.version else []
            for key in (*numbered, *(("alias", entry.base, entry.domain, name) for name in entry.aliases)):
                self._once(seen, key, entry.place)
        for entry in document.aliases:
            for base in {each.base for each in document.adapters} if entry.base is None else [entry.base]:
                self._once(seen, ("alias", base, entry.domain, entry.alias), entry.place)

    def _once(self, seen: dict[tuple[object, ...], Place], key: tuple[object, ...], place: Place) -> None:
        what, _, domain, name = key
        if key in seen:
            named = f"{domain}@{f'v{name}' if what == 'version' else name}"
            self._problems.add(place.path, f"{named} is already given at {seen[key]}")
        seen[key] = place
