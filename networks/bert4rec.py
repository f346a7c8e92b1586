"""BERT4Rec (Sun et al. 2019, arXiv 1904.06690): bidirectional attention over item ids, trained to fill in masked ones.

`BertForMaskedLM` of transformers, with the paper's sizes as Laser uses them (2 blocks, 2 heads of 32). As in the paper, some samples have only their last
item masked, which is what is asked for later. Unlike it, positions count back from the newest item, so that histories of all lengths end at the same one, and
only items can be answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import BertConfig, BertForMaskedLM

from ..tasks import DomainData, Split, ndcg
from ..tasks.early_stopping import EarlyStopping
from ..tasks.sasrec import dropped, padded
from ..tasks.torch_threads import one_torch_thread
from .id_encoder import AT_ONCE, FrozenIdEncoder, IdSequences, load_parameters, trimmed
from .options import Bert4RecOptions

PAD, MASK, UNKNOWN, FIRST = 0, 1, 2, 3  # items are numbered from FIRST


class Bert4Rec(nn.Module):
    """Item numbers in, the last hidden states out: [users, places] -> [users, places, width]. Padding may stand on either side."""

    def __init__(self, items: int, options: Bert4RecOptions) -> None:
        super().__init__()
        self.bert = BertForMaskedLM(
            BertConfig(
                vocab_size=items + FIRST,
                hidden_size=options.width,
                num_hidden_layers=options.blocks,
                num_attention_heads=options.heads,
                intermediate_size=4 * options.width,
                max_position_embeddings=options.length + 1,  # the history and the mask of what comes next
                type_vocab_size=1,
                hidden_dropout_prob=options.dropout,
                attention_probs_dropout_prob=options.dropout,
                pad_token_id=PAD,
            )
        )

    def forward(self, taken: Tensor) -> Tensor:
        real = taken != PAD
        back = (real.flip(1).cumsum(dim=1).flip(1) - 1).clamp(min=0)  # how many items are newer
        return self.bert.bert(taken, attention_mask=real.long(), position_ids=back).last_hidden_state

    def scores(self, states: Tensor) -> Tensor:
        """[…, width] -> […, items], a logit per item."""
        return self.bert.cls(states)[..., FIRST:]

    def next_scores(self, taken: Tensor) -> Tensor:
        """[users, places], padded on the left -> [users, items]: what follows, as a masked place at the end."""
        asked = torch.cat([taken, taken.new_full((len(taken), 1), MASK)], dim=1)
        return self.scores(self(asked)[:, -1])


class FrozenBert4Rec(FrozenIdEncoder):
    """A trained BERT4Rec. A history without items is asked about as well: its scores are what comes first."""

    KIND = "bert4rec"

    def __init__(self, model: Bert4Rec, options: Bert4RecOptions, items: Sequence[str], trained_on: str) -> None:
        super().__init__(model, items, trained_on)
        self.options, self.width, self.length = options, options.width, options.length

    def _number(self, item_id: str) -> int:
        place = self.place(item_id)
        return UNKNOWN if place is None else place + FIRST

    def _states(self, rows: Tensor) -> Tensor:
        return self._model(rows)

    def _scores(self, rows: Tensor) -> Tensor:
        return self._model.next_scores(rows)

    def _options(self) -> dict[str, Any]:
        return self.options.model_dump()

    @classmethod
    def _built(cls, options: Any, weights: dict[str, Tensor], items: Sequence[str], trained_on: str) -> Self:
        read = Bert4RecOptions.model_validate(options)
        model = Bert4Rec(len(items), read)
        load_parameters(model, weights)
        return cls(model, read, items, trained_on)


def train_bert4rec(
    data: DomainData,
    split: Split = "test",
    options: Bert4RecOptions = Bert4RecOptions(),  # noqa: B008  immutable
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FrozenBert4Rec:
    """Trained on what `IdSequences` has of the split, by AdamW, on one thread; the weights of the epoch with the best NDCG@10 are kept.

    That is of the items held out, ranked among all that training knows. `progress` receives (epochs done, epochs at most). Raises
    TaskError without anything to train on.
    """
    taken = IdSequences.of(data, split)
    numbers = {item_id: number for number, item_id in enumerate(taken.items, start=FIRST)}
    lessons = padded([[numbers[i] for i in lesson] for lesson in taken.lessons], options.length)
    targets = torch.tensor([numbers.get(item_id, UNKNOWN) - FIRST for item_id in taken.held_out])
    stopping = EarlyStopping(options.epochs, options.patience, progress)
    with one_torch_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = Bert4Rec(len(taken.items), options)
        optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
        stopping.best(model, lambda: _epoch(model, optimiser, lessons, options), lambda: _ndcg(model, lessons, targets))
    return FrozenBert4Rec(model, options, taken.items, taken.digest)


def _epoch(model: Bert4Rec, optimiser: torch.optim.Optimizer, lessons: Tensor, options: Bert4RecOptions) -> None:
    for batch in torch.randperm(len(lessons)).split(options.batch_size):
        rows = trimmed(lessons[batch])
        hidden = masked_places(rows, options)
        read = dropped(rows, rows != PAD, options.id_dropout, UNKNOWN).masked_fill(hidden, MASK)
        loss = F.cross_entropy(model.scores(model(read)[hidden]), rows[hidden] - FIRST)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def masked_places(rows: Tensor, options: Bert4RecOptions) -> Tensor:
    """[users, places]: which items training hides; at least one in each row. `rows` are padded on the left."""
    hidden = (torch.rand(rows.shape) < options.mask) & (rows != PAD)
    last = torch.zeros_like(hidden)
    last[:, -1] = True
    last_alone = (torch.rand(len(rows), 1) < options.mask_last) | ~hidden.any(dim=1, keepdim=True)
    return torch.where(last_alone, last, hidden)


@torch.inference_mode()
def _ndcg(model: Bert4Rec, histories: Tensor, targets: Tensor) -> float:
    """NDCG@10 among all known items; equal scores count against the target, and a target that is not known is a miss."""
    ranks: list[int | None] = []
    for taken, wanted in zip(histories.split(AT_ONCE), targets.split(AT_ONCE), strict=True):
        scores = model.next_scores(trimmed(taken))
        own = scores.gather(1, wanted.clamp(min=0)[:, None])
        found = ((scores >= own).sum(dim=1) - 1).tolist()
        ranks += [rank if target >= 0 else None for rank, target in zip(found, wanted.tolist(), strict=True)]
    return ndcg(ranks, 10)
