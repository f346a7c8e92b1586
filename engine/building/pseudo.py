"""The pseudo-users of a build by `objective: agreement`: drawn from the catalogue with its request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...registry import Build, Registry
from ...tasks import (
    DomainData,
    OpenQuestion,
    Template,
    examples,
    pseudo_questions,
    read_open_questions,
    write_questions,
)
from ..adaptive import FEWEST_FIT, Adaptive
from ..errors import AdaptationError
from .labels import CATALOGUE

PSEUDO = "pseudo.json"


def keep_pseudo_users(folder: Path, data: DomainData, template: Template, adaptive: Adaptive) -> dict[str, Any]:
    """Write what an agreement build asks into the folder; what the build's row keeps of it: how many ask, and how many users have labels.

    Raises AdaptationError for a catalogue of too few titles, and what `pseudo_questions` raises.
    """
    asked = pseudo_questions(
        data,
        template,
        users=adaptive.prompts,
        history=adaptive.history,
        n_negatives=adaptive.negatives,
        seed=adaptive.seed,
        with_likeness=adaptive.by_likeness,
    )
    if len(asked) < FEWEST_FIT:
        raise AdaptationError(
            f"the catalogue of {data.name} has {len(asked)} titles that differ, and `objective: agreement` needs at least {FEWEST_FIT},"
            " one for each pseudo-user",
            hint="more items with titles, or `--recipe average`",
        )
    write_questions(folder / PSEUDO, asked)
    titles = [data.items[item_id].title for item_id in data.titled] if adaptive.score == "constrained" else []
    (folder / CATALOGUE).write_text(json.dumps(titles, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"asked": len(asked), "labelled": len(examples(data, "validation"))}


def read_pseudo_users(registry: Registry, build: Build) -> tuple[list[OpenQuestion], list[str]]:
    """(questions, titles of the catalogue where the score needs them), as kept with the request; neither where nothing is searched."""
    if "pseudo_users" not in build.inputs:
        return [], []
    folder = registry.store.folder(build.inputs["prompts"]["digest"])
    return read_open_questions(folder / PSEUDO), json.loads((folder / CATALOGUE).read_text(encoding="utf-8"))
