"""Figures of validation examples, computed in batches that the processes of a training share out among themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn import functional as F  # noqa: N812

from ...tasks import Question
from ...tasks.scores import Score, fit_temperature, score_parts

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


class CandidateQuestions:
    """Validation questions whose candidates are scored with titles as they are served, by the model as far as it has learned."""

    def __init__(self, questions: Sequence[Question], tokenizer: Any) -> None:
        self._questions, self._tokenizer = questions, tokenizer
        self._targets = [question.target_index for question in questions]

    def likelihoods(
        self, accelerator: Accelerator, model: Any, *, prior: bool, progress: Callable[[int], None]
    ) -> torch.Tensor:
        """[questions, candidates]: log P of a title and what closes it, less with `prior` that under an empty history."""
        shares = [
            range(first, len(self._questions), accelerator.num_processes) for first in range(accelerator.num_processes)
        ]

        def measure(numbers: Sequence[int]) -> torch.Tensor:
            asked = [self._questions[number] for number in numbers]
            parts = score_parts(model, self._tokenizer, asked, {"pmi"} if prior else {"likelihood"}, progress=progress)
            return torch.tensor([part.scores(Score("pmi" if prior else "likelihood")) for part in parts])

        return figures(accelerator, shares, measure, (len(self._questions[0].titles),))

    def choice(self, likelihoods: torch.Tensor, temperature: float) -> float:
        """Mean −log softmax(log P / temperature) of the right titles, in nats."""
        targets = torch.tensor(self._targets)
        return F.cross_entropy(likelihoods / temperature, targets).item()

    def ranking(self, pmi: torch.Tensor) -> float:
        """Mean −log softmax(pmi / τ) of the right titles, in nats, with the τ at which it is smallest: confidence alone earns nothing."""
        return float(fit_temperature(pmi.numpy(), self._targets)[1].mean())
