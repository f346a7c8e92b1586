"""What a language model says of the candidates of questions: read once, kept, and enough for every score of their kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..registry.errors import InvalidArtifactError
from ..registry.store.atomic import write_whole
from ..registry.store.room import NO_ROOM, lacks_room
from ..registry.strict_json import OWN_LIMIT, read_object
from ..tasks import Likeness, Question, ScoreMode, ScoreParts, score_parts
from .adapting.mixture import Mixture
from .errors import EvaluationError
from .models import compute_dtype, load_model
from .question_sets import QuestionSet, result_key
from .systems import System


@dataclass(frozen=True)
class Keeping:
    """Where models run, and where results are kept, if anywhere."""

    device: str
    folder: Path | None


def figures(
    system: System,
    asked: QuestionSet,
    wanted: Collection[ScoreMode],
    keeping: Keeping,
    progress: Callable[[int, int], None],
    *,
    after: int = 0,
) -> tuple[list[ScoreParts], str | None]:
    """A model's figures of the questions, one for each; and why they could not be kept for later, if so.

    What was kept is not read again, so a second score of the same figures costs nothing. `after` says how many questions of the task stand
    before these. Raises EvaluationError and TaskError.
    """
    if "hybrid" in wanted:
        if asked.data is None:
            raise EvaluationError("the score hybrid needs the data that the questions are about")
        asked = replace(asked, questions=Likeness(asked.data).added(asked.questions))
    key = result_key(system, asked.task, str(compute_dtype(keeping.device)), f"figures after {after}")
    kept = keeping.folder / "figures" / f"{key}.json" if keeping.folder else None
    known = _kept_figures(kept, asked.questions) if kept else None
    if known is not None and all(part.allows(mode) for part in known for mode in wanted):
        return known, None
    with loaded(system, keeping.device) as (model, tokenizer):
        found = score_parts(
            model,
            tokenizer,
            asked.questions,
            wanted,
            catalogue=asked.catalogue,
            progress=lambda done: progress(done, len(asked.questions)),
        )
    if known is not None:
        found = [
            replace(new, prior=new.prior or old.prior, constrained=new.constrained or old.constrained)
            for new, old in zip(found, known, strict=True)
        ]
    content = [[part.likelihood, part.prior, part.constrained] for part in found]
    return found, keep(kept, {"figures": content}) if kept else None


def _kept_figures(path: Path, questions: Sequence[Question]) -> list[ScoreParts] | None:
    """What was kept of these questions, with the likeness that they have; None where there is nothing, or a power cut left it unreadable."""
    try:
        found = read_object(path, limit=OWN_LIMIT)["figures"]
        return [
            ScoreParts(tuple(likelihood), prior and tuple(prior), constrained and tuple(constrained), question.likeness)
            for (likelihood, prior, constrained), question in zip(found, questions, strict=True)
        ]
    except (InvalidArtifactError, KeyError, TypeError, ValueError):
        return None


@contextmanager
def loaded(system: System, device: str) -> Iterator[tuple[Any, Any]]:
    """A system's model, with its adapter on it, and the tokenizer."""
    assert system.checkpoint is not None
    model, tokenizer = load_model(system.checkpoint, device)
    with ExitStack() as stack:
        if system.adapter is not None:
            stack.enter_context(Mixture(model, [system.adapter], "linear"))
        yield model, tokenizer


def keep(path: Path, content: Mapping[str, object]) -> str | None:
    """Write a result; where that cannot be done, why."""
    try:
        write_whole(path, json.dumps(content) + "\n")
    except OSError as error:
        return f"{path.parent}: {error.strerror}" + (f"; {NO_ROOM}" if lacks_room(error) else "")
    return None
