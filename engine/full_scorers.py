"""How each kind of system scores a whole catalogue. A further kind is one more case in `full_scorer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..networks.bert4rec import train_bert4rec
from ..networks.bi_tuning import open_bi_tuning
from ..networks.item_index import ItemIndex
from ..networks.laser import Laser, load_frozen
from ..registry.errors import UsageError
from ..tasks import CatalogueScorer, FullTask, Item, PopularityScorer, TfidfScorer, train_sasrec
from .systems import FULL_BASELINES, System

Progress = Callable[[int, int], None]
TRAINED = ("sasrec", "bert4rec")  # their progress counts epochs, that of the others users


@dataclass
class IndexScorer:
    """A bi-tuning: the cosines of each user with all items. `matrix` [items, width] is in the order of the catalogue.

    `progress` receives the users `done`, of those `asked`.
    """

    users: Laser
    items: Mapping[str, Item]
    matrix: Tensor
    asked: int
    progress: Progress
    done: int = 0

    @classmethod
    def of(cls, system: System, task: FullTask, device: str, progress: Progress) -> IndexScorer:
        """Items that the newest index lacks are embedded. Raises InvalidArtifactError for a bundle or an index that is damaged."""
        assert system.bi_tuning is not None
        assert system.checkpoint is not None
        assert system.index is not None
        bundle = open_bi_tuning(system.bi_tuning)
        model, tokenizer = load_frozen(system.checkpoint, device, bundle.manifest.dtype)
        items = {item_id: task.data.items[item_id] for item_id in task.data.titled}
        known = ItemIndex.read(system.index, encoder=bundle.manifest.encoder)
        index = bundle.indexed(bundle.items(model, tokenizer), items, known=known)
        rows = {item_id: row for row, item_id in enumerate(index.item_ids)}
        matrix = index.matrix[[rows[item_id] for item_id in task.data.titled]]
        return cls(bundle.users(model, tokenizer), items, matrix, len(task.examples), progress)

    def scores(self, histories: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """[histories, items], from −1 to 1."""
        texts = [[self.items[item_id] for item_id in history] for history in histories]
        found = self.users.encode(texts, progress=lambda done: self.progress(self.done + done, self.asked))
        self.done += len(texts)
        return (found @ self.matrix.T).numpy()


def expect_scorable(system: System) -> None:
    """Raises UsageError for a system that does not score whole catalogues."""
    if system.bi_tuning is not None:
        return
    if system.baseline is None:
        raise UsageError(
            f"{system.label} scores titles one by one, which a whole catalogue for each user has too many of",
            hint="--task rank ranks it among candidates",
        )
    if system.baseline not in FULL_BASELINES:
        raise UsageError(
            f"{system.label} predicts clicks and ranks nothing",
            hint=f"baselines of --task full are {', '.join(FULL_BASELINES)}",
        )


def full_scorer(system: System, task: FullTask, device: str, progress: Progress) -> CatalogueScorer:
    """One that has learned what was known before the task's targets. Raises TaskError where there is too little."""
    data, part = task.data, task.spec.part
    if system.bi_tuning is not None:
        return IndexScorer.of(system, task, device, progress)
    match system.baseline:
        case "popularity":
            return PopularityScorer(data, part)
        case "tfidf":
            return TfidfScorer(data)
        case "tfidf-last":
            return TfidfScorer(data, last_items=1)
        case "sasrec":
            return train_sasrec(data, part, device=device, progress=progress)
        case "bert4rec":
            return train_bert4rec(data, part, progress=progress).over(data.titled)
    raise AssertionError(system.label)
