"""The labelled questions of a build: drawn with its request, without users whose labels an adapter of the mix has seen.

Weights of our trainer are learned from training targets alone; validation targets choose the checkpoint, and which ones did is in
the adapter's context. What a context does not say is warned of, and the labels are used: an adapter that was trained elsewhere would have none otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...registry import Adapter, Build, Registry
from ...registry.catalog.filters import BuildFilter
from ...tasks import (
    DomainData,
    Likeness,
    Template,
    examples,
    question,
    read_questions,
    sample,
    user_digest,
    write_questions,
)
from ..adapting.users import FIT_SHARE, Labels, divide, enough
from ..adaptive import FEWEST_FIT, Adaptive
from ..errors import GuardError

FIT, GATE, CATALOGUE = "fit.json", "gate.json", "catalogue.json"
PAGE = 200  # builds that are read together


@dataclass(frozen=True)
class Seen:
    """Users of a domain whose labels some adapter has seen, by digest; and what is not known, one sentence an adapter."""

    users: frozenset[str]
    warnings: tuple[str, ...]


def seen_by(adapters: Sequence[Adapter], data: DomainData) -> Seen:
    """Whose validation labels the adapters have seen, as far as their contexts say."""
    users: set[str] = set()
    warnings = []
    for adapter in adapters:
        own, doubt = _seen_by_one(adapter, data)
        users |= own
        if doubt:
            warnings.append(f"{adapter.ref} {doubt}; it may have seen labels that choose and judge the mix")
    return Seen(frozenset(users), tuple(warnings))


def _seen_by_one(adapter: Adapter, data: DomainData) -> tuple[frozenset[str], str | None]:
    training = adapter.training
    if not (training.data or training.validation):
        return frozenset(), "says nothing of what it was trained on"
    trained = [entry for entry in training.data if entry.domain == data.name or entry.digest == data.digest]
    said = [entry for entry in training.validation if entry.domain == data.name or entry.data == data.digest]
    if not (trained or said):
        return frozenset(), None  # it knows other domains
    if not said and any(entry.digest == data.digest for entry in trained):
        drawn, seed = training.options.get("validation_examples"), training.options.get("seed")
        if training.trainer == "sft" and isinstance(drawn, int) and isinstance(seed, int):
            # of before it was kept: drawn again as `sft` draws it
            again = sample(examples(data, "validation"), drawn, seed)
            return frozenset(user_digest(example.user_id) for example in again), None
    users = frozenset(user for entry in said for user in entry.users)
    if not said:
        return users, f"was trained on {data.name} and does not say which labels chose its checkpoint"
    if all(entry.data != data.digest for entry in said):
        return users, f"was trained on {data.name} when it had other data"
    return users, None


def keep_labels(
    folder: Path, data: DomainData, template: Template, adaptive: Adaptive, adapters: Sequence[Adapter]
) -> dict[str, Any]:
    """Write what a ranking build asks into the folder; what the build's row keeps of it: how many, and which users judge."""
    seen = seen_by(adapters, data)
    there = examples(data, "validation")
    ordered = sample(there, len(there), adaptive.seed)
    out = {e.user_id for e in there if user_digest(e.user_id) in seen.users}
    division = divide(ordered, out, adaptive.labels, most_fit=adaptive.fit_users)
    for name, group in (FIT, division.fit), (GATE, division.gate):
        asked = [question(data, example, template, adaptive.negatives, adaptive.seed) for example in group]
        write_questions(folder / name, Likeness(data).added(asked) if adaptive.by_likeness else asked)
    titles = [data.items[item_id].title for item_id in data.titled] if adaptive.score in ("auto", "constrained") else []
    (folder / CATALOGUE).write_text(json.dumps(titles, ensure_ascii=False) + "\n", encoding="utf-8")
    return {
        "fit": len(division.fit),
        "gate": len(division.gate),
        "available": len(there),
        "seen": division.seen,
        "warnings": list(seen.warnings),
    }


def read_labels(registry: Registry, build: Build) -> Labels:
    """What was kept with the request; no labels where the domain had no data."""
    kept = build.inputs.get("labels")
    if kept is None:
        return Labels(warnings=("the domain has no data",))
    folder = registry.store.folder(build.inputs["prompts"]["digest"])
    return Labels(
        tuple(read_questions(folder / FIT)),
        tuple(read_questions(folder / GATE)),
        tuple(json.loads((folder / CATALOGUE).read_text(encoding="utf-8"))),
        looks=len({other.key for other in _looked_before(registry, build)}),
        seen=kept["seen"],
        warnings=tuple(kept["warnings"]),
    )


def _looked_before(registry: Registry, build: Build) -> Iterator[Build]:
    """Other builds of the domain and base that have compared a mix on users of the same data.

    Which users may judge follows from each user alone, so those of a larger sample include those of a smaller one. The same build again
    looks at nothing new.
    """
    last: str | None = None
    while page := registry.builds.list(BuildFilter(domain=build.domain), limit=PAGE, after=last):
        last = page[-1].id
        for other in page:
            if other.key == build.key or other.base != build.base:
                continue
            compared = ((other.report or {}).get("adaptation") or {}).get("comparison")
            ranked = compared or (other.error or {}).get("code") == GuardError.code
            if ranked and (other.inputs.get("data") or {}).get("digest") == build.inputs["data"]["digest"]:
                yield other


def label_note(build: Build) -> str | None:
    """What the labels of a requested build will make of it, where that is no mix, or would make of it where the recipe uses none."""
    adaptive = build.recipe.get("adaptive") or {}
    if adaptive.get("objective") == "agreement":
        there = (build.inputs.get("pseudo_users") or {}).get("labelled", 0)
        return (
            f"the domain has {there:,} labelled users, whom `objective: agreement` does not look at; `objective: ranking` measures a mix by them"
            if there >= FEWEST_FIT / FIT_SHARE
            else None
        )
    if adaptive.get("objective") != "ranking" or len(build.inputs["adapters"]) == 1:
        return None
    kept = build.inputs.get("labels")
    if kept is None:
        return "the domain has no data, so no labelled users to choose a mix by: the average will be taken"
    if enough(kept["fit"], kept["gate"]):
        return None
    then = "the build will fail" if adaptive.get("too_few_labels") == "fail" else "the average will be taken"
    return f"{kept['fit'] + kept['gate']} labelled users are too few to choose a mix by: {then}"
