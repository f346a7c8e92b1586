"""SASRec (Kang & McAuley 2018, arXiv 1808.09781): self-attention over item ids, a baseline that reads no titles.

As in the paper: learned positions, causal self-attention blocks, item embeddings shared between input and output. Unlike
the paper: the loss is the cross-entropy over all items, which later work (Klenitskiy & Vasilev 2023, arXiv 2309.07602) found stronger than
the paper's, which is an option; layer norms stand before the blocks, activations are GELU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .data import DomainData
from .early_stopping import EarlyStopping
from .errors import TaskError
from .metrics import ndcg
from .popularity import known
from .prompts import Question
from .ranking import Ranking
from .sasrec_options import SasRecOptions
from .splits import Split
from .torch_threads import one_torch_thread

PAD = 0  # items are numbered from 1
SAMPLED = 99  # negatives beside each validation target


class SasRec(nn.Module):
    """Item numbers in, what is expected next at every place out: [users, places] -> [users, places, width].

    With `unknown` there is one more number, `items + 1`, for items without a number of their own; it is read and never expected.
    """

    def __init__(self, items: int, options: SasRecOptions, *, unknown: bool = False) -> None:
        super().__init__()
        self.heads = options.heads
        self.expectable = items + 1
        self.items = nn.Embedding(items + 1 + unknown, options.width, padding_idx=PAD)
        self.positions = nn.Embedding(options.length, options.width)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.dropout = nn.Dropout(options.dropout)
        block = nn.TransformerEncoderLayer(
            options.width,
            options.heads,
            2 * options.width,
            options.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(block, options.blocks, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(options.width)

    def forward(self, taken: Tensor) -> Tensor:
        places = taken.shape[1]
        later = torch.ones(places, places, dtype=torch.bool, device=taken.device).triu(1)
        hidden = later | (taken == PAD)[:, None, :]
        # Padding may see itself: attention to nothing at all is not a number.
        hidden &= ~torch.eye(places, dtype=torch.bool, device=taken.device)
        # Positions count back from the newest item, as in the paper, so that histories of all lengths end at the same one.
        positions = self.positions(torch.arange(places - 1, -1, -1, device=taken.device))
        read = self.dropout(self.items(taken) + positions)
        return self.norm(self.blocks(read, mask=hidden.repeat_interleave(self.heads, dim=0)))

    def scores(self, expected: Tensor) -> Tensor:
        """[…, width] -> […, items + 1], a logit per item; the first is of no item."""
        return expected @ self.items.weight[: self.expectable].T


class SasRecScorer:
    """A trained SASRec that scores the titled items of its data."""

    def __init__(self, model: SasRec, data: DomainData, options: SasRecOptions, device: str) -> None:
        self._model, self._options, self._device = model, options, device
        self._numbers = numbers(data)

    @torch.inference_mode()
    def scores(self, histories: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """[histories, items], a logit per item."""
        taken = [[self._numbers[item_id] for item_id in history] for history in histories]
        some = range(0, len(taken), self._options.batch_size)
        return torch.cat([self._scored(taken[start : start + self._options.batch_size]) for start in some]).numpy()

    def _scored(self, taken: Sequence[list[int]]) -> Tensor:
        found = self._model(padded(taken, self._options.length).to(self._device))[:, -1]
        return self._model.scores(found)[:, 1:].cpu()


def rank_by_sasrec(
    data: DomainData,
    questions: Sequence[Question],
    split: Split,
    options: SasRecOptions = SasRecOptions(),  # noqa: B008  immutable
    *,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Ranking]:
    """Train on what is known before the split's targets, and score every candidate after the question's history.

    Of what each user is `known` to have taken, the last item is held out to stop by; the weights of the epoch with the best
    NDCG@10 on it, among 99 sampled negatives, are kept. So for `test` the training and validation positions serve as such. An
    item that occurs in no training sequence has an embedding that was only ever pushed away. Equal scores count against the
    target. `progress` receives (epochs done, epochs at most). Raises TaskError without anything to train on.
    """
    scorer = train_sasrec(data, split, options, device=device, progress=progress)
    places = {item_id: place for place, item_id in enumerate(data.titled)}
    rankings: list[Ranking] = []
    for start in range(0, len(questions), options.batch_size):
        some = questions[start : start + options.batch_size]
        found = scorer.scores([question.example.history for question in some])
        offered = [[places[item_id] for item_id in question.candidates] for question in some]
        rankings += [
            Ranking.of(row[of].tolist(), question) for question, row, of in zip(some, found, offered, strict=True)
        ]
    return rankings


def train_sasrec(
    data: DomainData,
    split: Split,
    options: SasRecOptions = SasRecOptions(),  # noqa: B008  immutable
    *,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SasRecScorer:
    """Train as `rank_by_sasrec` does, to score the whole catalogue."""
    known_numbers = numbers(data)
    sequences = [[known_numbers[item_id] for item_id in taken] for taken in known(data, split)]
    model = trained(sequences, len(known_numbers), options, device=device, progress=progress)
    return SasRecScorer(model, data, options, device)


def numbers(data: DomainData) -> dict[str, int]:
    """Of the titled items by id, from 1."""
    return {item_id: number for number, item_id in enumerate(data.titled, start=1)}


def trained(
    sequences: Sequence[list[int]],
    items: int,
    options: SasRecOptions,
    *,
    id_dropout: float = 0.0,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SasRec:
    """The weights of the epoch that found the last item of each sequence best. It computes on one thread, and leaves the caller's random generator alone.

    `id_dropout` is the share of the items read that training takes for unknown; above 0 the model has that number, which only the last
    item of a sequence may have: then it is not held out.
    """
    with one_torch_thread(), torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(options.seed)
        return _trained(sequences, items, options, id_dropout, device, progress)


def _trained(
    sequences: Sequence[list[int]],
    items: int,
    options: SasRecOptions,
    id_dropout: float,
    device: str,
    progress: Callable[[int, int], None],
) -> SasRec:
    lessons = padded([s[:-1] for s in sequences if len(s) > 2], options.length + 1)
    exam = [s for s in sequences if len(s) > 1]
    if not len(lessons):
        raise TaskError("SASRec has no training data", hint="users need at least 4 interactions")
    asked = padded([s[:-1] for s in exam], options.length).to(device)
    offered = torch.tensor([[s[-1], *_negatives(set(s), items)] for s in exam], device=device)
    asked, offered = asked[offered[:, 0] <= items], offered[offered[:, 0] <= items]
    model = SasRec(items, options, unknown=id_dropout > 0).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)

    def epoch() -> None:
        for batch in torch.randperm(len(lessons)).split(options.batch_size):
            rows = lessons[batch].to(device)
            taken, wanted = rows[:, :-1], rows[:, 1:]
            counts = taken != PAD  # the first item cannot be predicted
            read = dropped(taken, counts, id_dropout, items + 1) if id_dropout else taken
            loss = _loss(model, model(read)[counts], wanted[counts], options.loss)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    stopping = EarlyStopping(options.epochs, options.patience, progress)
    return stopping.best(model, epoch, lambda: _ndcg(model, asked, offered, options.batch_size))


def dropped(taken: Tensor, real: Tensor, share: float, unknown: int) -> Tensor:
    """The numbers with a random share of the `real` places replaced by that of unknown items."""
    return taken.masked_fill(real & (torch.rand(taken.shape, device=taken.device) < share), unknown)


def _loss(model: SasRec, expected: Tensor, wanted: Tensor, kind: str) -> Tensor:
    """Mean over places; `expected` [places, width] is what the model expects, `wanted` [places] the items that came."""
    if kind == "softmax":
        return F.cross_entropy(model.scores(expected), wanted)
    others = torch.randint_like(wanted, 1, model.expectable)
    right, wrong = ((expected * model.items(items)).sum(dim=-1) for items in (wanted, others))
    return (F.softplus(-right) + F.softplus(wrong)).mean()


def _negatives(taken: set[int], items: int) -> list[int]:
    """SAMPLED random items outside `taken`, or all of them with repeats where a catalogue is that small."""
    drawn = (torch.randperm(items)[: SAMPLED + len(taken)] + 1).tolist()
    outside = [number for number in drawn if number not in taken][:SAMPLED]
    if not outside:
        return [PAD] * SAMPLED
    return [outside[place % len(outside)] for place in range(SAMPLED)]


@torch.inference_mode()
def _ndcg(model: SasRec, asked: Tensor, offered: Tensor, batch_size: int) -> float:
    """NDCG@10 of the first of those offered; equal scores count against it. 0 where none could be held out."""
    if not len(asked):
        return 0.0
    ranks: list[int] = []
    for taken, candidates in zip(asked.split(batch_size), offered.split(batch_size), strict=True):
        scores = model.scores(model(taken)[:, -1]).gather(1, candidates)
        ranks += ((scores >= scores[:, :1]).sum(dim=1) - 1).tolist()
    return ndcg(ranks, 10)


def padded(histories: Sequence[list[int]], length: int) -> Tensor:
    """The newest `length` items of each, or as many as the longest has, padded on the left: [histories, places]."""
    places = min(length, max(map(len, histories), default=0))
    rows = [[PAD] * (places - len(history)) + history[-places:] for history in histories]
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), places)
