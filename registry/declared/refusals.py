"""Why a registry is not brought to what a file says: what is there, or in a folder, is something else."""

from __future__ import annotations

from pathlib import Path

from ..catalog.bases import Base
from ..errors import ConflictError, InvalidArtifactError, NotFoundError
from .document import AdapterEntry, BaseEntry


def is_known(known: Base, entry: BaseEntry) -> bool:
    """Whether the base is what the entry says, as far as that shows without its files.

    A folder has to be read: its files may have changed. What the Hub or a package has under a name was recorded with its commit or file.
    """
    if entry.digest is not None:
        return entry.digest == known.digest
    if entry.files is not None or entry.source is None or Path(entry.source).is_absolute():
        return False
    same = known.source == entry.source or known.source.startswith(f"{entry.source}/")
    return same and entry.revision in (None, known.revision)


def check_digest(
    folder: Path,
    digest: str | None,
    wanted: str | None,
    *,
    hint: str = "these are other files than the ones that were meant; correct the source, or leave the digest out",
) -> None:
    if wanted is not None and digest is not None and digest != wanted:
        raise InvalidArtifactError(
            f"{folder}: its digest is {digest}, and the file says {wanted}",
            hint=hint,
        )


def check_version(entry: AdapterEntry, number: int) -> None:
    if entry.version is not None and entry.version != number:
        raise ConflictError(
            f"it is {entry.domain}@v{number}, and the file says v{entry.version}",
            hint="versions are numbered as they come: list them all in their order, or leave `version` out",
        )


def other_content(known: Base, digest: str) -> ConflictError:
    return ConflictError(
        f"base model {known.name!r} is already there with other content ({known.digest}, not {digest})",
        hint="give it another name in the file",
    )


def nowhere(files: str | None, digest: str | None, *, hint: str = "name a `source`") -> NotFoundError:
    where = " and ".join(
        filter(None, [f"{files} is not a folder" if files else None, digest and f"the store has no {digest}"])
    )
    return NotFoundError(f"its files are nowhere: {where}", hint=hint)
