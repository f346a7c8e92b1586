"""What publishing a build, an adapter and a bundle have in common: the options, the package, its files, license and provenance."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..engine.merging.card import CardData
from ..engine.merging.provenance import adapter_statement
from ..registry import Adapter, Base, Build, Publication, Registry
from ..registry.artifacts.allowlist import is_published, published_files
from ..registry.artifacts.repo_ids import is_repo_id
from ..registry.digests import file_digest
from ..registry.errors import ConflictError, UsageError
from .licenses import License, known_license, parse, strictest

CARD, PROVENANCE = "README.md", "provenance.json"


@dataclass(frozen=True)
class PublishOptions:
    """The publisher's choices: repository, license, card template, signing key (PEM).

    `strip_users` leaves out of a personalised LoRA what it has of single users. `rebase` goes on top of what others have committed, `replaces` has everything that is there make room, `offline`
    plans without the Hub. A license that was
    named for the last publication, and not anew, is `named_for` the licenses that its parts had then.
    """

    repo: str | None = None
    license: License | None = None
    template: Path | None = None
    key: Path | None = None
    named_for: frozenset[str] | None = None
    rebase: bool = False
    replaces: bool = False
    offline: bool = False
    strip_users: bool = False

    def inherit(self, last: Publication) -> PublishOptions:
        """To the same repository, with what was chosen for the last publication unless it is chosen anew. Raises UsageError."""
        options = last.options or {}
        if options.get("template") and self.template is None:
            raise UsageError(f"{last.repo} has a card from a custom template", hint="--card-template FILE")
        if self.license is not None or not options.get("license"):
            return replace(self, repo=last.repo)
        named_for = frozenset(map(str, options.get("parts", ())))
        return replace(self, repo=last.repo, license=parse(options["license"]), named_for=named_for)


@dataclass(frozen=True)
class Package:
    """A folder as it goes to the Hub. `known` has the SHA-256 (hex) of files that need not be read for theirs."""

    folder: Path
    trailer: str
    message: str
    known: Mapping[str, str]
    license: License | None
    parts: frozenset[str]  # the licenses of what it is made of, `none` where none is known
    notes: tuple[str, ...] = ()


def stated(adapter: Adapter, base: Base, package: Package) -> Package:
    """The package of an adapter, its provenance written beside it, with what its commit says."""
    folder, known = package.folder, package.known
    names = [name for name in published_files(folder)[0] if name != CARD]
    subjects = {each: f"sha256:{known[each]}" if each in known else file_digest(folder / each) for each in names}
    data = {f"data of {entry.domain}": entry.digest for entry in data_of(adapter)}
    content = adapter_statement(
        adapter.ref, adapter.digest, subjects=subjects, dependencies={"base": base.digest} | data
    )
    (folder / PROVENANCE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    trailer, message = (
        f"RecCocktail-Adapter: {adapter.ref} {adapter.digest}",
        f"RecCocktail adapter {adapter.ref} for {base.name}",
    )
    return replace(package, trailer=trailer, message=message)


def linked(
    registry: Registry, digest: str, source: Path, folder: Path, left_out: Collection[str] = ()
) -> dict[str, str]:
    """Puts what the store keeps into a folder, but for the card and what else is written anew; the SHA-256 of each file."""
    known = {}
    for name, entry in registry.store.tree(digest).files.items():
        if is_published(name) and name != CARD and name not in left_out:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            registry.store.link(source / name, target)
            known[name] = entry.sha256
    return known


def hub_base_of(registry: Registry, base: Base) -> str | None:
    """The repository that the base model is on the Hub; None where it is none, or has been an adapter's since."""
    if not base.revision or not is_repo_id(base.source):
        return None
    newest = next(iter(registry.publications.of_repo(base.source)), None)
    if newest is None or newest.created_at < base.created_at:
        return base.source
    return base.source if newest.build and not _is_adapter(registry.builds.get(newest.build)) else None


def _is_adapter(build: Build) -> bool:
    return build.recipe.get("output", {}).get("format") == "adapter"


def license_of(
    registry: Registry, base: Base, adapters: list[Adapter], options: PublishOptions
) -> tuple[License | None, frozenset[str], tuple[str, ...]]:
    """The license of the whole, those of its parts, and what the publisher should know about it. Raises ConflictError."""
    known = {f"base model {base.name}": known_license(registry.bases.folder(base))}
    known |= {adapter.ref: known_license(registry.adapters.folder(adapter)) for adapter in adapters}
    parts = frozenset(str(terms) if terms else "none" for terms in known.values())
    if options.license is not None:
        if options.named_for is not None and not parts <= options.named_for:
            new = ", ".join(f"{what} is under {terms or 'no known license'}" for what, terms in known.items())
            had = ", ".join(sorted(options.named_for)) or "parts that were not recorded"
            raise ConflictError(
                f"{options.repo} was published under {options.license}, which was named for {had}; now {new}",
                hint="check the licenses; --license ID sets one",
            )
        return options.license, parts, ()
    found = strictest(known)
    silent = [what for what, terms in known.items() if terms is None]
    if found is None:
        note = "no license is known for the base model or an adapter, so the card has none; set one with --license ID"
        return None, parts, (note,)
    if silent:
        return found, parts, (f"the license is {found}; no license is known for {', '.join(silent)}",)
    return found, parts, ()


def data_of(adapter: Adapter) -> tuple[CardData, ...]:
    """The data that it was trained on, as far as both name and digest are known."""
    return tuple(CardData(each.domain, each.digest) for each in adapter.training.data if each.domain and each.digest)
