"""A build, a line of its log, and the answer to a request for one, as everything outside the database has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import ConflictError, WrongKindError
from .collecting import request_options, result_is_gone
from .records import Record
from .references import MERGE

BUILT = {"merge": "a merge", "index": "an index of items"}


@dataclass(frozen=True)
class Build(Record):
    """One build. `inputs` are pinned versions and digests; `done` of `total` is progress in its `stage`.

    `own_recipe` is whether it was requested with the domain's own recipe of that time: one that was not is an experiment, and
    does not represent the domain. It is None where that is not known. A build that waits for another attempt is queued, is not
    claimed before `retry_at`, and has the `error` of the last one. `recipe_ref` is what its recipe was called, unless it was a file. Since `collected_at`
    its result is gone, because nobody needed it.

    `kind` is `merge`, or `index` of one that embeds the domain's items by a bi-tuning, its one adapter; that has neither a recipe nor
    coefficients, and is never served.

    `path` is where the result lies on this machine, or None where it does not: `store.folder` may still fetch it.
    """

    id: str
    domain: str
    base: str
    status: str
    key: str
    digest: str | None
    recipe: Mapping[str, Any]
    coefficients: Mapping[str, Any] | None
    inputs: Mapping[str, Any]
    path: Path | None
    report: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    done: int
    total: int
    attempts: int
    worker: str | None
    stage: str | None
    retry_at: datetime | None
    created_at: datetime
    created_by: str
    started_at: datetime | None
    finished_at: datetime | None
    own_recipe: bool | None = None
    recipe_ref: str | None = None
    collected_at: datetime | None = None
    kind: str = MERGE

    def stored_digest(self, kind: str | None = MERGE) -> str:
        """The digest of the result, of a build of this kind; None means any.

        Raises WrongKindError, ConflictError for a build that has none, or whose result was removed from the store.
        """
        if kind not in (None, self.kind):
            raise WrongKindError(
                f"build {self.id} is {BUILT[self.kind]}, and {BUILT[kind]} is needed here",
                hint=f"`reccocktail build list --domain {self.domain} --kind {kind}` shows those that there are",
            )
        if self.status != "succeeded" or self.digest is None:
            raise ConflictError(f"build {self.id} is {self.status} and has no result")
        if self.collected_at is not None:
            raise result_is_gone(self.id, self.domain, request_options(self.inputs), self.collected_at)
        return self.digest


@dataclass(frozen=True)
class LogLine(Record):
    """Something that a worker said of its build."""

    id: int
    at: datetime
    worker: str | None
    text: str


@dataclass(frozen=True)
class Request:
    """The answer to a request: the build, and whether it is a new one."""

    build: Build
    created: bool
