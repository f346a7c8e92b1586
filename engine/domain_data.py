"""The data of a domain, as the registry says where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..registry import Registry
from ..registry.errors import UsageError

if TYPE_CHECKING:
    from ..tasks import DomainData

NO_CATALOGUE = ", so there is no catalogue to recommend from"


def data_folder(registry: Registry, domain: str, *, needed: str = "") -> Path:
    """Where the domain's data lie on this machine; `needed` ends the sentence that it has none.

    Raises NotFoundError, UsageError without data, StoreError.
    """
    data = registry.domains.get(domain).data
    if data is None:
        raise UsageError(f"domain {domain!r} has no data{needed}", hint=f"reccocktail domain add {domain} --data DIR")
    return registry.data_folder(data)


def domain_data(registry: Registry, domain: str, *, needed: str = "") -> DomainData:
    """Raises NotFoundError, UsageError without data, StoreError, DataError."""
    from ..tasks import read_domain  # the readers import numpy, and `status` seldom reads data

    return read_domain(data_folder(registry, domain, needed=needed), domain)
