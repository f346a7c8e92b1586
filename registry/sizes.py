"""Bytes as people say them."""

from __future__ import annotations


def size(count: int) -> str:
    """In units of 1000, as `2.6 KB`."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
