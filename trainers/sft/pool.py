"""What a training learns from or is validated on: questions, and the data that each is from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...tasks import DomainData, Question, Template, fit
from ..plugin import TrainerError
from .options import SftOptions


@dataclass(frozen=True)
class Sourced:
    """A question, made ready for the model, and the data that it is from."""

    question: Question
    data: DomainData


@dataclass(frozen=True)
class Pool:
    """Questions of all domains, the data that each is from, and per domain what they are."""

    questions: tuple[Question, ...]
    sources: tuple[DomainData, ...]
    specs: tuple[dict[str, Any], ...]

    def ready(self, tokenizer: Any) -> list[Sourced]:
        """The questions as a model with this tokenizer is to see them."""
        return list(map(Sourced, fit(self.questions, tokenizer), self.sources))


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
