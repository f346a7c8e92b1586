"""What went into a build, down to the digests of its data."""

from __future__ import annotations

from typing import Any

from ...registry import Adapter, Build, Registry


def trace(registry: Registry, build: Build) -> dict[str, Any]:
    """The build's lineage as JSON; what was not recorded is null, or an empty list."""
    inputs = build.inputs
    base = registry.bases.get(build.base)
    adapters = [registry.adapters.resolve(entry["ref"], base=build.base, kind=None) for entry in inputs["adapters"]]
    return {
        "base": {"name": base.name, "digest": base.digest, "source": base.source, "revision": base.revision},
        "adapters": [_adapter(adapter) for adapter in adapters],
        "recipe": dict(build.recipe),
        "data": inputs.get("data"),
        "template": inputs.get("template"),
        "items": inputs.get("items"),
        "on": inputs.get("on"),
        "publications": [each.to_json() for each in registry.publications.list(build=build.id)],
    }


def _adapter(adapter: Adapter) -> dict[str, Any]:
    training = adapter.training
    return {
        "role": adapter.role,
        "ref": adapter.ref,
        "digest": adapter.digest,
        "registered_at": adapter.created_at.isoformat(),
        "registered_by": adapter.created_by,
        "origin": dict(training.origin) or None,
        "trainer": training.trainer,
        "trainer_version": training.trainer_version,
        "template": training.template_option or training.template_name,
        "data": [{"domain": each.domain, "digest": each.digest} for each in training.data],
    }
