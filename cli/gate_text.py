"""What a gate asks for, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .console import counted


def asked(require: Mapping[str, Any] | None, approvals: int) -> str:
    """What a gate asks for, as it is typed: `metric=NDCG@3, against=champion, …; 1 approval`."""
    required = ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in (require or {}).items()
    )
    return "; ".join(filter(None, [required, counted(approvals, "approval") if approvals else ""]))
