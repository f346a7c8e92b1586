"""DIN (Zhou et al. 2018, arXiv 1706.06978), the conventional recommender of RecLoRA (Zhu et al. 2024, arXiv 2408.03533).

As in the code of RecLoRA's authors: an element of the history is ReLU(Linear[item; rating]); attention is an MLP on [t, h, t − h, t · h] without softmax, and a masked
sum; three layers of 256 follow. The last of them is c_u, what is known of a user before an item. Unlike theirs, dropout is off
once it is trained, so that c_u does not change.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ..tasks import ClickData, ClickRow, ClickScores, TaskError, roc_auc
from ..tasks.early_stopping import EarlyStopping
from ..tasks.torch_threads import one_torch_thread
from .click_fields import UNKNOWN, ClickBatch, ClickEncoder, ClickVocabulary, padded_table
from .options import DinOptions

WEIGHTS, MANIFEST = "din.safetensors", "din.json"
FORMAT = 1
AT_ONCE = 512  # rows of an inference batch
Progress = Callable[[int, int], None]


class TargetAttention(nn.Module):
    """Σ over the history of a(t, h) · h, where a is an MLP on [t, h, t − h, t · h] and no softmax follows."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(4 * width, hidden)
        self.last = nn.Linear(hidden, 1)

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """`target` [rows, width], `history` [rows, places, width], `mask` [rows, places] -> [rows, width]."""
        of_t, of_h, of_difference, of_product = self.first.weight.chunk(4, dim=1)
        # equal to a product with [t, h, t − h, t · h], for a third of the work: what a target multiplies is the same for all of its history
        of_row = (of_h - of_difference) + target[:, None] * of_product
        read = torch.baddbmm(F.linear(target, of_t + of_difference, self.first.bias)[:, None], history, of_row.mT)
        weights = self.last(F.relu(read)).squeeze(-1) * mask
        return (weights[:, None] @ history).squeeze(1)


class Din(nn.Module):
    """Batches in, c_u or the logit of a like out."""

    _known: Tensor
    _item_words: Tensor
    _item_categories: Tensor

    def __init__(self, vocabulary: ClickVocabulary, options: DinOptions) -> None:
        super().__init__()
        width = options.embedding
        self.options = options
        self.users = nn.Embedding(len(vocabulary.users) + 1, width)
        self.items = nn.Embedding(len(vocabulary.trained_items) + 1, width)
        self.ratings = nn.Embedding(len(vocabulary.ratings) + 1, width)
        self.words = nn.Embedding(len(vocabulary.words) + 1, width, padding_idx=UNKNOWN)
        self.categories = nn.Embedding(len(vocabulary.categories) + 1, width, padding_idx=UNKNOWN)
        self.profile = nn.ModuleList(nn.Embedding(len(values) + 1, width) for values in vocabulary.profile.values())
        for table in self.modules():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=0.1)  # smaller ones never leave 0 in the product without target
        self.taken = nn.Linear(4 * width, 3 * width)
        self.attention = TargetAttention(3 * width, options.attention) if options.target else None
        fields = 1 + len(vocabulary.profile) + (6 if options.target else 3)
        sizes = [fields * width] + [options.hidden] * options.layers
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.head = nn.Linear(options.hidden, 1) if options.target else nn.Linear(3 * width, options.hidden + 1)
        known = torch.zeros(len(vocabulary.items) + 1, dtype=torch.long)
        known[list(vocabulary.trained_items)] = torch.arange(1, len(vocabulary.trained_items) + 1)
        self.register_buffer("_known", known, persistent=False)
        self.register_buffer("_item_words", padded_table(vocabulary.item_words), persistent=False)
        self.register_buffer("_item_categories", padded_table(vocabulary.item_categories), persistent=False)

    def forward(self, batch: ClickBatch) -> Tensor:
        """[rows], the logit that the user likes the target."""
        user, target, history, mask = self._fields(batch)
        hidden = self._hidden(user, target, history, mask)
        if self.options.target:
            return self.head(hidden).squeeze(-1)
        read = self.head(target)
        return (hidden * read[:, 1:]).sum(dim=-1) + read[:, 0]

    def user_vectors(self, batch: ClickBatch) -> Tensor:
        """[rows, hidden], c_u: the last hidden layer."""
        return self._hidden(*self._fields(batch))

    def _fields(self, batch: ClickBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The user's fields [rows, …], the target [rows, 3 · width], the history [rows, places, 3 · width] and its mask."""
        known = [table(batch.profile[:, place]) for place, table in enumerate(self.profile)]
        user = torch.cat([self.users(self._dropped(batch.user)), *known], dim=-1)
        numbers, at = torch.cat([batch.target[:, None], batch.history], dim=1).unique(return_inverse=True)
        vectors = self._items_of(numbers)
        of_items, of_ratings = self.taken.weight.split([vectors.shape[1], self.options.embedding], dim=1)
        # equal to `taken` of [item; rating] in every place, once for each item and each rating
        items = F.embedding(at[:, 1:], F.linear(vectors, of_items, self.taken.bias))
        ratings = F.embedding(batch.ratings, F.linear(self.ratings.weight, of_ratings))
        history = F.relu(items + ratings)
        return user, F.embedding(at[:, 0], vectors), history, (batch.ratings > 0).to(history.dtype)

    def _items_of(self, numbers: Tensor) -> Tensor:
        """[items] -> [items, 3 · width]: the id's embedding, the mean of those of its title's words, and of its categories."""
        ids = self.items(self._dropped(self._known[numbers]))
        return torch.cat([ids, _mean(self.words, self._item_words[numbers]), _mean(self.categories, self._item_categories[numbers])], dim=-1)  # fmt: skip

    def _dropped(self, ids: Tensor) -> Tensor:
        """In training, some ids become unknown."""
        if not self.training or not self.options.id_dropout:
            return ids
        return ids.masked_fill(torch.rand(ids.shape, device=ids.device) < self.options.id_dropout, UNKNOWN)

    def _hidden(self, user: Tensor, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        if self.attention is not None:
            found = torch.cat([user, target, self.attention(target, history, mask)], dim=-1)
        else:
            counts = mask.sum(dim=1, keepdim=True).clamp(min=1)
            found = torch.cat([user, (history * mask[..., None]).sum(dim=1) / counts], dim=-1)
        for layer in self.layers:
            found = F.dropout(F.relu(layer(found)), self.options.dropout, self.training)
        return found


def _mean(table: nn.Embedding, terms: Tensor) -> Tensor:
    """[items, terms] -> [items, width]; zeros for an item without terms."""
    counts = (terms != UNKNOWN).sum(dim=1, keepdim=True).clamp(min=1)
    return table(terms).sum(dim=1) / counts


class FrozenDin:
    """A trained DIN in evaluation mode, which nothing changes any more.

    It computes in float64, so that what is rounded to float32 does not depend on which rows share a batch. `trained_on` is the digest of
    the ClickData.
    """

    def __init__(self, model: Din, vocabulary: ClickVocabulary, trained_on: str) -> None:
        self.options, self.vocabulary, self.trained_on = model.options, vocabulary, trained_on
        self._model = model.double().eval().requires_grad_(False)
        self._encoder = ClickEncoder(vocabulary, model.options.length)

    @property
    def width(self) -> int:
        """Of c_u."""
        return self.options.hidden

    def knows(self, user_id: str) -> bool:
        return user_id in self._encoder.users

    @torch.inference_mode()
    def user_vectors(self, rows: Sequence[ClickRow]) -> Tensor:
        """c_u in float32, [rows, width]; without `target` in the options the same whatever a row's target is."""
        return self._over(rows, self._model.user_vectors, (0, self.width)).float()

    @torch.inference_mode()
    def scores(self, rows: Sequence[ClickRow]) -> NDArray[np.float64]:
        """[rows], the probability that the user likes the target."""
        return self._over(rows, self._model, (0,)).sigmoid().numpy()

    def _over(
        self, rows: Sequence[ClickRow], function: Callable[[ClickBatch], Tensor], empty: tuple[int, ...]
    ) -> Tensor:
        some = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
        with one_torch_thread():
            found = [function(self._encoder.encode(each)) for each in some]
        return torch.cat(found) if found else torch.empty(empty, dtype=torch.float64)

    def without_users(self) -> FrozenDin:
        """The same without any user's id or embedding, and without profile fields that tell users apart: every user is unknown to it."""
        model, profile = copy.deepcopy(self._model), dict(self.vocabulary.profile)
        model.users = _unknown_alone(model.users)
        for place, (name, values) in enumerate(self.vocabulary.profile.items()):
            if len(values) > max(1, len(self.vocabulary.users) // 2):  # postal codes, names: as many as there are users
                profile[name] = ()
                model.profile[place] = _unknown_alone(model.profile[place])
        return FrozenDin(model, self.vocabulary.model_copy(update={"users": (), "profile": profile}), self.trained_on)

    def save(self, folder: Path) -> None:
        """Weights in float32 in `din.safetensors`, everything else in `din.json`; equal ones have equal bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.float().contiguous() for name, value in self._model.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        content = {"format": FORMAT, "trained_on": self.trained_on, "options": self.options.model_dump(), "vocabulary": self.vocabulary.model_dump()}  # fmt: skip
        (folder / MANIFEST).write_text(json.dumps(content, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> FrozenDin:
        """What `save` wrote. Raises TaskError for a file that is missing or damaged, or for weights of other sizes."""
        try:
            content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r} is not {FORMAT}")
            options = DinOptions.model_validate(content["options"])
            vocabulary = ClickVocabulary.model_validate(content["vocabulary"])
            model = Din(vocabulary, options)
            model.load_state_dict(load_file(folder / WEIGHTS))
            return cls(model, vocabulary, content["trained_on"])
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            RuntimeError,
            SafetensorError,
            ValidationError,
        ) as error:
            raise TaskError(
                f"{folder} holds no DIN that can be read: {error}",
                hint=f"it needs {WEIGHTS} and {MANIFEST} as they were written",
            ) from error


def _unknown_alone(table: nn.Module) -> nn.Embedding:
    """An embedding of the unknown value, and of no other."""
    assert isinstance(table, nn.Embedding)
    return nn.Embedding.from_pretrained(table.weight[:1].clone())


def train_din(
    clicks: ClickData,
    options: DinOptions = DinOptions(),  # noqa: B008  immutable
    *,
    progress: Progress = lambda done, total: None,
) -> FrozenDin:
    """Trained on all training rows by AdamW, on one thread; the weights of the epoch with the best validation ROC AUC are kept.

    `progress` receives (batches done, batches at most). Raises OneClassError where the validation rows are all alike.
    """
    vocabulary = ClickVocabulary.of(clicks.train, clicks.items)
    encoder = ClickEncoder(vocabulary, options.length)
    exam = _Exam(encoder.encode(clicks.validation), _scored(clicks.validation, np.full(len(clicks.validation), 0.5)))
    labels = torch.tensor([float(bool(row.label)) for row in clicks.train])
    with one_torch_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = Din(vocabulary, options)
        _fit(model, encoder.encode(clicks.train), labels, exam, progress)
    return FrozenDin(model, vocabulary, clicks.digest)


@dataclass(frozen=True)
class _Exam:
    """The validation rows, and the labels that their scores are judged by."""

    batch: ClickBatch
    labels: ClickScores

    @torch.inference_mode()
    def auc(self, model: Din) -> float:
        model.eval()
        parts = torch.arange(len(self.batch)).split(AT_ONCE)
        scores = torch.cat([model(self.batch.rows(part)) for part in parts]).sigmoid()
        return roc_auc(replace(self.labels, scores=scores.double().numpy()))


def _scored(rows: Sequence[ClickRow], scores: NDArray[np.float64]) -> ClickScores:
    return ClickScores.of([row.label is True for row in rows], scores, [row.user_id for row in rows])


def _fit(model: Din, rows: ClickBatch, labels: Tensor, exam: _Exam, progress: Progress) -> None:
    options = model.options
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    batches = -(-len(rows) // options.batch_size)
    done = count(1)

    def epoch() -> None:
        for batch in torch.randperm(len(rows)).split(options.batch_size):
            loss = F.binary_cross_entropy_with_logits(model(rows.rows(batch)), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            progress(next(done), options.epochs * batches)

    EarlyStopping(options.epochs, options.patience).best(model, epoch, lambda: exam.auc(model))
