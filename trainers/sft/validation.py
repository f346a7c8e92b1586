"""Figures of validation examples, computed in batches that the processes of a training share out among themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator

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
) -> torch.Tensor:
    """One figure for each number in `batches`, in order, in float64 on the CPU; all processes get all of them.

    `measure` gives a batch's figures. Each process measures every n-th batch; it may not wait for the others meanwhile.
    """
    found = torch.zeros(sum(map(len, batches)), dtype=torch.float64)
    with torch.no_grad(), accelerator.autocast():
        for batch in batches[accelerator.process_index :: accelerator.num_processes]:
            found[list(batch)] = measure(batch).double().cpu()
    if accelerator.num_processes > 1:
        found = accelerator.reduce(found.to(accelerator.device), "sum").cpu()  # pyright: ignore[reportAttributeAccessIssue]
    return found
