"""What callers may name: rows of the registry, and no file or folder of the server's disk."""

from __future__ import annotations

from ..registry.errors import UsageError


def expect_registered(*names: str) -> None:
    """Raises UsageError for what the command would take for a folder."""
    if any("/" in name or "\\" in name or name.startswith((".", "~")) for name in names):
        raise UsageError("a folder of the server's disk cannot be named here", hint="name a version, a build or an id")
