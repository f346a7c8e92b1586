"""What a training learns from or is validated on: questions, and the data that each is from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...tasks import ClickQuestion, DomainData, Question, Template, fit, fit_clicks, user_digest
from ..plugin import TrainerError
from .options import SftOptions


@dataclass(frozen=True)
class Sourced:
    """A question, made ready for the model, and the data that it is from."""

    question: Question | ClickQuestion
    data: DomainData


@dataclass(frozen=True)
class Pool:
    """Questions of all domains, of one task, the data that each is from, and per domain what they are."""

    questions: tuple[Question, ...] | tuple[ClickQuestion, ...]
    sources: tuple[DomainData, ...]
    specs: tuple[dict[str, Any], ...]

    def ready(self, tokenizer: Any) -> list[Sourced]:
        """The questions as a model with this tokenizer is to see them."""
        asked = [each for each in self.questions if isinstance(each, Question)]
        clicks = [each for each in self.questions if isinstance(each, ClickQuestion)]
        return list(map(Sourced, [*fit(asked, tokenizer), *fit_clicks(clicks, tokenizer)], self.sources))


def count_of(domain: str, there: int, options: SftOptions) -> int:
    """How many examples a domain gives that has so many."""
    usual = there if options.examples is None else min(options.examples, there)
    return max(1, round(usual * options.weights.get(domain, 1.0)))


def validation_spec(domain: str, data_digest: str, user_ids: Sequence[str], options: SftOptions) -> dict[str, Any]:
    """What is kept of a domain's validation. `users` are digests, so that no mix is chosen or judged by labels that chose a checkpoint.

    `users_digest` is the SHA-256 of the sorted user ids as JSON, for whoever draws them again to check.
    """
    digest = hashlib.sha256(json.dumps(sorted(user_ids)).encode()).hexdigest()
    return {
        "domain": domain,
        "data": data_digest,
        "split": "validation",
        "users": sorted(map(user_digest, user_ids)),
        "users_digest": f"sha256:{digest}",
        "seed": options.seed,
        "examples": len(user_ids),
    }


def check_template(options: SftOptions, template: Template) -> None:
    """Raises TrainerError for a loss that cannot be had with the template."""
    if options.loss != "answer" and template.answers > 1:
        raise TrainerError(
            f"loss={options.loss} learns one title, and template {template.name!r} answers with {template.answers}",
            hint="-o loss=answer, or a template with one answer such as next-title",
        )
    if options.loss in ("choice", "contrast") and template.lists_candidates:
        raise TrainerError(
            f"loss={options.loss} takes its negatives from the batch, and template {template.name!r} shows others in the prompt",
            hint="-o loss=answer or masked, or a template without {candidates} such as next-title",
        )
