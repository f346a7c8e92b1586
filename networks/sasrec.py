"""SASRec of `tasks.sasrec` as a frozen encoder, with an unknown item that was trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from pydantic import TypeAdapter
from torch import Tensor

from ..tasks import DomainData, SasRecOptions, Split
from ..tasks.sasrec import SasRec, trained
from .id_encoder import FrozenIdEncoder, IdSequences, load_parameters


@dataclass(frozen=True)
class SasRecEncoderOptions(SasRecOptions):
    """Those of the baseline. `id_dropout`, above 0, is the share of the items read that training takes for unknown."""

    id_dropout: float = 0.1


class FrozenSasRec(FrozenIdEncoder):
    """A trained SASRec. Of a history, an item's vector follows from the items up to it."""

    KIND = "sasrec"

    def __init__(self, model: SasRec, options: SasRecEncoderOptions, items: Sequence[str], trained_on: str) -> None:
        super().__init__(model, items, trained_on)
        self.options, self.width, self.length = options, options.width, options.length

    def _number(self, item_id: str) -> int:
        place = self.place(item_id)
        return len(self.items) + 1 if place is None else place + 1

    def _states(self, rows: Tensor) -> Tensor:
        return self._model(rows)

    def _scores(self, rows: Tensor) -> Tensor:
        return self._model.scores(self._model(rows)[:, -1])[:, 1:]

    def _options(self) -> dict[str, Any]:
        return asdict(self.options)

    @classmethod
    def _built(cls, options: Any, weights: dict[str, Tensor], items: Sequence[str], trained_on: str) -> Self:
        read = TypeAdapter(SasRecEncoderOptions).validate_python(options)
        model = SasRec(len(items), read, unknown=True)
        load_parameters(model, weights)
        return cls(model, read, items, trained_on)


def train_sasrec_encoder(
    data: DomainData,
    split: Split = "test",
    options: SasRecEncoderOptions = SasRecEncoderOptions(),
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FrozenSasRec:
    """Trained on what `IdSequences` has of the split, on one thread, as `rank_by_sasrec` trains. `progress` receives (epochs done, epochs at most)."""
    taken = IdSequences.of(data, split)
    numbers = {item_id: number for number, item_id in enumerate(taken.items, start=1)}
    unknown = len(numbers) + 1
    sequences = [
        [numbers.get(item_id, unknown) for item_id in (*lesson, held_out)]
        for lesson, held_out in zip(taken.lessons, taken.held_out, strict=True)
    ]
    model = trained(sequences, len(numbers), options, id_dropout=options.id_dropout, progress=progress)
    return FrozenSasRec(model, options, taken.items, taken.digest)
