"""Publications that are not the build that their domain serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..engine.building.freshness import Freshness, FreshnessIndex, freshness_of, remembering
from ..engine.building.planning import live_lookups
from ..registry import Build, Publication, Registry


@dataclass(frozen=True)
class OutdatedPublication:
    """A repository whose publication, `last`, is not of the build that its domain serves; `skipped` is why that build may not be published there."""

    build: Build
    last: Publication
    skipped: str | None = None


def behind(registry: Registry) -> list[OutdatedPublication]:
    """Every repository whose domain serves another build for its base model than the one that is there, be it an older one.

    What is served goes there, except where it was withdrawn.
    """
    published = registry.publications.standing()
    return _behind(registry, FreshnessIndex(registry).of(_places(published)), published)


@dataclass(frozen=True)
class Overview:
    """By domain where it stands, the newest of its publications that stand, and the newest one that is behind, if any."""

    states: Mapping[str, Freshness]
    published: Mapping[str, Publication]
    behind: Mapping[str, OutdatedPublication]


def overview(registry: Registry, domain: str | None = None) -> Overview:
    """Of all domains, in as many queries for many domains and publications as for few; or of one. Raises NotFoundError."""
    published = registry.publications.standing(domain)
    if domain is None:
        every = FreshnessIndex(registry)
        states = every.of([*((name, None) for name in every.domains), *_places(published)])
    else:
        places = {(domain, None), *_places(published)}
        look = remembering(live_lookups(registry))
        states = {(name, base): freshness_of(registry, name, base=base, look=look) for name, base in places}
    late = [each for each in _behind(registry, states, published) if not each.skipped]
    return Overview(
        {name: state for (name, base), state in states.items() if base is None},
        {last.domain: last for last in reversed(published)},
        {each.last.domain: each for each in sorted(late, key=lambda each: each.last.id)},
    )


def _places(published: Iterable[Publication]) -> set[tuple[str, str | None]]:
    return {(last.domain, last.base) for last in published}


def _behind(
    registry: Registry, states: Mapping[tuple[str, str | None], Freshness], published: list[Publication]
) -> list[OutdatedPublication]:
    late = [
        (build, last)
        for last in sorted(published, key=lambda each: (each.domain, each.repo))
        if (build := states[last.domain, last.base].build) is not None and build.id != last.build
    ]
    withdrawn = registry.publications.withdrawn_builds() if late else frozenset()

    def skipped(build: Build, last: Publication) -> str | None:
        if (last.repo, build.id) in withdrawn:
            return f"build {build.id} was withdrawn there"
        if build.base != last.base:
            return f"build {build.id} is for the base model {build.base}, and the published one for {last.base}"
        return None

    return [OutdatedPublication(build, last, skipped(build, last)) for build, last in late]
