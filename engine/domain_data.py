"""The data of a domain, as the registry says where it lies."""

from __future__ import annotations

from pathlib import Path

from ..registry import Registry
from ..registry.errors import UsageError
from ..tasks import DomainData, read_domain


def domain_data(registry: Registry, domain: str) -> DomainData:
    """Raises UsageError where the domain has none."""
    row = registry.domains.get(domain)
    if row.data is None:
        raise UsageError(
            f"domain {domain!r} has no data, so there is no catalogue to recommend from",
            hint=f"reccocktail domain add {domain} --data DIR",
        )
    return read_domain(Path(row.data), domain)
