"""Adapters whose files are in the store, on their way to a row: a new one, or that of the version that has the content already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..artifacts.bundle_facts import BundleFacts
from ..artifacts.facts import AdapterFacts
from ..artifacts.inspect import copied
from ..database.tables import AdapterRow
from ..errors import ConflictError
from .lookup import ref_of
from .references import LORA
from .registration import Checks, Labels
from .versions import Adapter, adapter_of


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter from `folder` whose files are in the store; `content` is `content_digest` of it, `skipped` are files that were left out."""

    folder: Path
    digest: str
    content: str
    facts: AdapterFacts | BundleFacts
    skipped: tuple[str, ...]

    @property
    def kind(self) -> str:
        return self.facts.kind if isinstance(self.facts, BundleFacts) else LORA


def copied_as_inspected(
    copy: Path, facts: AdapterFacts | BundleFacts, checks: Checks
) -> tuple[AdapterFacts | BundleFacts, str] | None:
    """The facts of the copy and the digest of its content; None if it is not of what was inspected."""
    if isinstance(facts, BundleFacts):
        from ..artifacts.bundle_inspect import copied_bundle

        return (facts, facts.content) if copied_bundle(copy, facts, scan=checks.scan) else None
    return copied(copy, facts, scan=checks.scan)


def known_version(row: AdapterRow, labels: Labels, folder: Path | str, *, must_be_new: bool) -> Adapter:
    """The version that has the content already, and which of the labels it does not have. Raises ConflictError if it is archived."""
    if row.archived_at is not None:
        raise ConflictError(
            f"{folder} has the content of {ref_of(row)}, which is archived; its bytes are in the store",
            hint=f"reccocktail adapter archive {ref_of(row)} --base {row.base.name} --undo",
        )
    if must_be_new:
        raise ConflictError(
            f"{folder} has the content of {ref_of(row)}", hint="leave out --if-exists fail to use that version"
        )
    given = {"metrics": labels.metrics, "tags": tuple(labels.tags), "note": labels.note}
    known = adapter_of(row)
    return replace(
        known, ignored=tuple(what for what, value in given.items() if value and value != getattr(known, what))
    )


def new_row(stored: StoredAdapter, labels: Labels) -> AdapterRow:
    """Without its place: base, domain, role and version."""
    return AdapterRow(
        kind=stored.kind,
        digest=stored.digest,
        content=stored.content,
        rank=stored.facts.rank,
        alpha=stored.facts.alpha,
        target_modules=[*stored.facts.target_modules],
        tensors=stored.facts.tensors,
        bytes=stored.facts.bytes,
        metrics=dict(labels.metrics),
        tags=[*labels.tags],
        note=labels.note,
        context=dict(labels.context),
    )
