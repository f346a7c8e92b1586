"""Figures of validation examples, computed in batches that the processes of a training share out among themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn import functional as F  # noqa: N812

from ...tasks import Question
from ...tasks.ranking import closing, prompt_text, token_ids
from ...tasks.scores import fit_temperature
from .losses import Logits, title_scores

BATCH_TOKENS = 2048  # padded tokens of a pass: more gains nothing on a CPU, and a vocabulary is wide


def batches_of_like_length(lengths: Sequence[int], most: int = BATCH_TOKENS) -> list[list[int]]:
    """All numbers from 0, shortest first, in batches that have at most `most` tokens with padding, or a single example.

    They depend on the lengths alone, so that no figure depends on how many processes there are.
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and lengths[number] * (len(batches[-1]) + 1) <= most:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def figures(
    accelerator: Accelerator,
    batches: Sequence[Sequence[int]],
    measure: Callable[[Sequence[int]], torch.Tensor],
    shape: tuple[int, ...] = (),
) -> torch.Tensor:
    """[numbers in `batches`, *shape]: each number's figures, in order, in float64 on the CPU; all processes get all of them.

    `measure` gives a batch's figures. Each process measures every n-th batch; it may not wait for the others meanwhile.
    """
    found = torch.zeros(sum(map(len, batches)), *shape, dtype=torch.float64)
    with torch.no_grad(), accelerator.autocast():
        for batch in batches[accelerator.process_index :: accelerator.num_processes]:
            found[list(batch)] = measure(batch).double().cpu()
    if accelerator.num_processes > 1:
        found = accelerator.reduce(found.to(accelerator.device), "sum").cpu()  # pyright: ignore[reportAttributeAccessIssue]
    return found


def _groups(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    left = iter(texts)
    while some := list(islice(left, size)):
        yield some


@dataclass(frozen=True)
class Reading:
    """A prompt and the titles that are scored as its answers, in tokens."""

    prompt: torch.Tensor
    answers: tuple[torch.Tensor, ...]

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.answers))


class CandidateQuestions:
    """Validation questions, made ready for the model, whose candidates are scored with titles as they are served.

    `packs` says whether the model reads a prompt once for all of its titles.
    """

    def __init__(self, questions: Sequence[Question], tokenizer: Any, *, packs: bool) -> None:
        self._packs = packs
        self._targets = [question.target_index for question in questions]
        self._each = len(questions[0].titles)

        @cache
        def tokens(text: str) -> torch.Tensor:
            return torch.tensor(token_ids(tokenizer, text))

        self._own: list[Reading] = []
        closed: dict[str, dict[str, None]] = {}  # by a question's prompt without a history, the titles that follow it
        places: list[list[tuple[str, str]]] = []
        for question in questions:
            end, start = closing(tokenizer, question), prompt_text(tokenizer, replace(question, history=()))
            titles = [title + end for title in question.titles]
            self._own.append(Reading(tokens(prompt_text(tokenizer, question)), tuple(map(tokens, titles))))
            closed.setdefault(start, {}).update(dict.fromkeys(titles))
            places.append([(start, title) for title in titles])
        self._priors: list[Reading] = []
        at: dict[tuple[str, str], int] = {}
        for start, titles in closed.items():
            for some in _groups(titles, self._each):
                at |= {(start, title): len(self._priors) * self._each + n for n, title in enumerate(some)}
                filled = [*some, *[some[-1]] * (self._each - len(some))]
                self._priors.append(Reading(tokens(start), tuple(map(tokens, filled))))
        self._prior_at = torch.tensor([[at[place] for place in some] for some in places])

    def likelihoods(self, accelerator: Accelerator, logits: Logits, progress: Callable[[], None]) -> torch.Tensor:
        """[questions, candidates]: log P of a title and what closes it."""
        return self._read(self._own, accelerator, logits, progress)

    def pmi(self, accelerator: Accelerator, logits: Logits, progress: Callable[[], None]) -> torch.Tensor:
        """[questions, candidates]: the same, less its value under an empty history, which is read once per title."""
        priors = self._read(self._priors, accelerator, logits, progress)
        return self.likelihoods(accelerator, logits, progress) - priors.flatten()[self._prior_at]

    def _read(
        self, readings: Sequence[Reading], accelerator: Accelerator, logits: Logits, progress: Callable[[], None]
    ) -> torch.Tensor:
        def measure(numbers: Sequence[int]) -> torch.Tensor:
            some = [readings[number] for number in numbers]
            prompts = [each.prompt.to(accelerator.device) for each in some]
            answers = [[answer.to(accelerator.device) for answer in each.answers] for each in some]
            progress()
            return title_scores(prompts, answers, logits, packs=self._packs)

        return figures(accelerator, batches_of_like_length(list(map(len, readings))), measure, (self._each,))

    def choice(self, likelihoods: torch.Tensor, temperature: float) -> float:
        """Mean −log softmax(log P / temperature) of the right titles, in nats."""
        return F.cross_entropy(likelihoods / temperature, torch.tensor(self._targets)).item()

    def ranking(self, pmi: torch.Tensor) -> float:
        """Mean −log softmax(pmi / τ) of the right titles, in nats, with the τ at which it is smallest: confidence alone earns nothing."""
        return float(fit_temperature(pmi.numpy(), self._targets)[1].mean())
