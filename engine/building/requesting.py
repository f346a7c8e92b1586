"""Requesting what a domain lacks: its merge by its own recipe, and the indexes of its bi-tunings."""

from __future__ import annotations

from ...registry import Registry, Request
from ..recipe_book import own_recipe
from .indexing import bi_tuning_of, has_only_bi_tunings, indexes_by_domain, request_index
from .planning import request


def request_lacking(registry: Registry, domain: str, *, force: bool = False) -> list[Request]:
    """The merge, or where a domain has nothing to merge the index of its newest bi-tuning; and every index that is stale.

    A build of the same inputs is the answer where there is one, unless `force` is set. Raises what `request` and `request_index` raise.
    """
    row = registry.domains.get(domain)
    stale = [each.adapter for each in indexes_by_domain(registry, domain).get(domain, ()) if each.state == "stale"]
    if not has_only_bi_tunings(registry, domain):
        answered = [request(registry, domain, own_recipe(registry, row.recipe), force=force)]
    elif stale:
        answered = []
    else:
        answered = [request_index(registry, bi_tuning_of(registry, domain), force=force)]
    return answered + [request_index(registry, each) for each in stale]
