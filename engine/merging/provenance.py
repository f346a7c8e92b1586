"""The metadata files of a merged checkpoint: recipe, model card and provenance.

provenance.json is an in-toto Statement with a SLSA provenance predicate.

Formats: https://in-toto.io/Statement/v1 and https://slsa.dev/spec/v1.0/provenance. There is no time and no machine in
it: the same inputs give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from ...registry.artifacts.task_heads import task_in
from ...registry.digests import file_digest
from .card import CardFacts, render_card

BUILD_TYPE = "urn:reccocktail:merge:v1"
ADAPTER_TYPE = "urn:reccocktail:adapter:v1"


def write_metadata(
    out: Path,
    recipe: dict,
    card: CardFacts,
    dependencies: Mapping[str, str],
    domain: str | None,
    *,
    known: Mapping[str, str],
) -> None:
    """Write recipe.json (final coefficients), README.md and provenance.json beside merged weights.

    `known` gives digests of files that need not be read again for theirs.
    """
    (out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(render_card(replace(card, task=task_in(out))), encoding="utf-8")
    # The card is about the result, not part of it: it may be rewritten when the result is published.
    files = (path for path in out.rglob("*") if path.is_file())
    names = sorted(name for path in files if (name := path.relative_to(out).as_posix()) != "README.md")
    subjects = {name: known.get(name) or file_digest(out / name) for name in names}
    content = statement(recipe, subjects=subjects, dependencies=dependencies, domain=domain)
    (out / "provenance.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def statement(
    recipe: dict, *, subjects: Mapping[str, str], dependencies: Mapping[str, str], domain: str | None
) -> dict:
    """`subjects`: file name → "sha256:…" of what was made. `dependencies`: role → "sha256:…" of what went in."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": _digest(d)} for name, d in sorted(subjects.items())],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": recipe} | ({"domain": domain} if domain else {}),
                "internalParameters": {},
                "resolvedDependencies": [
                    # The digest is that of the folder's manifest: every file's path, size and SHA-256.
                    {"name": role, "digest": _digest(digest), "mediaType": "application/vnd.reccocktail.tree+json"}
                    for role, digest in dependencies.items()
                ],
            },
            "runDetails": {
                "builder": {"id": "urn:reccocktail:engine", "version": {"reccocktail": version("reccocktail")}}
            },
        },
    }


def adapter_statement(ref: str, digest: str, *, subjects: Mapping[str, str], dependencies: Mapping[str, str]) -> dict:
    """As `statement`, of an adapter version as it was registered under `digest` (that of its folder's manifest)."""
    made = statement({}, subjects=subjects, dependencies=dependencies, domain=None)
    definition = made["predicate"]["buildDefinition"]
    definition["buildType"] = ADAPTER_TYPE
    definition["externalParameters"] = {"adapter": {"ref": ref, "digest": digest}}
    return made


def _digest(text: str) -> dict[str, str]:
    algorithm, _, value = text.partition(":")
    return {algorithm: value}
