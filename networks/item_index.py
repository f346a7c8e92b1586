"""The items of a catalogue as embeddings in one file, searched by cosine; what is new is added without training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..registry.errors import InvalidArtifactError
from ..tasks import HistoryTemplate, Item, TaskError
from ..tasks.history_texts import items_digest

INDEX = "index.safetensors"
FORMAT = "1"
MANY = 100_000  # items from which a search reads the rows in float16 first
ERROR = 0.002  # most that a cosine in float16 is off: 2 · 2⁻¹¹ by rounding both sides, 2⁻¹¹ by rounding the sum, and less for adding up in float32
BLOCK = 2048
AGAIN = "build the index again, or take it again from where it was made"
Encode = Callable[[Sequence[Item]], Tensor]


@dataclass(frozen=True)
class Found:
    """An item and its cosine with what was searched for."""

    item_id: str
    score: float


@dataclass(frozen=True)
class ItemIndex:
    """`matrix` [items, width] in float32, rows of length 1, in the order of the sorted `item_ids`.

    `texts` has per item the SHA-256 (hexadecimal) of what was read of it. `encoder` names what made the rows: base, weights, template.
    """

    item_ids: tuple[str, ...]
    texts: tuple[str, ...]
    matrix: Tensor = field(repr=False)
    encoder: str

    def __post_init__(self) -> None:
        shape = len(self.item_ids), len(self.texts)
        if self.matrix.ndim != 2 or shape != (len(self.matrix),) * 2:
            raise TaskError(
                f"an index of {shape[0]} items with {shape[1]} texts has a matrix of {[*self.matrix.shape]}"
            )
        if list(self.item_ids) != sorted(set(self.item_ids)):
            raise TaskError("an index has each item once, sorted by id")

    @classmethod
    def of(
        cls,
        items: Mapping[str, Item],
        template: HistoryTemplate,
        encoder: str,
        encode: Encode,
        known: ItemIndex | None = None,
    ) -> ItemIndex:
        """Of all these items; rows of items that `known` has with the same text are copied, and only the others encoded.

        Raises UntitledItemError; TaskError where `known` was made by another encoder.
        """
        if known is not None and known.encoder != encoder:
            raise TaskError(f"the index was made by {known.encoder}, and is to be added to by {encoder}")
        ids = tuple(sorted(items))
        texts = tuple(template.item_digest(items[item_id]) for item_id in ids)
        places = {} if known is None else known._places
        old = [places.get((item_id, text)) for item_id, text in zip(ids, texts, strict=True)]
        new = [item_id for item_id, place in zip(ids, old, strict=True) if place is None]
        made = encode([items[item_id] for item_id in new]).float().cpu() if new or known is None else known.matrix[:0]
        matrix = made.new_empty(len(ids), made.shape[1])
        matrix[[place is None for place in old]] = made
        if known is not None:
            matrix[[place is not None for place in old]] = known.matrix[[place for place in old if place is not None]]
        return cls(ids, texts, matrix, encoder)

    @property
    def digest(self) -> str:
        """Of the items alone: their ids and what was read of each."""
        return items_digest(self.item_ids, self.texts)

    def search(self, query: Tensor, k: int, *, without: Collection[str] = ()) -> list[Found]:
        """The k items with the highest cosine, ties by item id. `query` [width] has length 1; items `without` are left out."""
        left_out = [*{self._rows[item_id] for item_id in without if item_id in self._rows}]
        k = min(k, len(self.item_ids) - len(left_out))
        if k < 1:
            return []
        places, scores = self._near(query.to(self.matrix), k, left_out)
        best = torch.argsort(scores, descending=True, stable=True)[:k]  # places are in the order of ids
        return [Found(self.item_ids[places[each]], float(scores[each])) for each in best.tolist()]

    def _near(self, query: Tensor, k: int, left_out: list[int]) -> tuple[Tensor, Tensor]:
        """Places, ascending, among which are the k best and all that tie with them, and the cosine of each.

        Of many items the halved rows say which are near, by what they may be off. Should one be off by more (a machine that adds up in
        float16), all rows are read as they are.
        """
        if len(self.item_ids) >= MANY:
            rough = (self._halves @ query.half()).float()
            rough[left_out] = -torch.inf
            places = _at_least(rough, k, 2 * ERROR)
            scores = (self.matrix[places].double() @ query.double()).float()
            if len(places) and (scores - rough[places]).abs().max() <= ERROR:
                return places, scores
        scores = torch.from_numpy(self.matrix.numpy() @ query.numpy())  # on all cores, as torch's is not
        scores[left_out] = -torch.inf
        places = _at_least(scores, k)
        return places, scores[places]

    def write(self, path: Path) -> None:
        """Equal indices have equal bytes."""
        tensors = {"item_ids": _packed(self.item_ids), "texts": _packed(self.texts), "matrix": self.matrix.contiguous()}
        told = {"format": FORMAT, "encoder": self.encoder, "items": self.digest, "content": _content(tensors)}
        save_file(tensors, path, {"index": json.dumps(told, sort_keys=True)})

    @classmethod
    def read(cls, path: Path, *, encoder: str | None = None) -> ItemIndex:
        """What `write` wrote. Raises InvalidArtifactError for a file that is damaged, or not of the `encoder` it is wanted for."""
        try:
            with safe_open(path, "pt") as file:
                told = json.loads((file.metadata() or {})["index"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            if told["format"] != FORMAT:
                raise ValueError(f"its format is {told['format']!r}, and read here is {FORMAT!r}")
            if told["content"] != _content(tensors):
                raise ValueError("its bytes are not those that were written")
            index = cls(_unpacked(tensors["item_ids"]), _unpacked(tensors["texts"]), tensors["matrix"], told["encoder"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, TaskError) as error:
            raise InvalidArtifactError(f"{path}: is no index that can be used: {error}", hint=AGAIN) from error
        if encoder is not None and index.encoder != encoder:
            raise InvalidArtifactError(
                f"{path}: was made by {index.encoder}, and wanted is one made by {encoder}",
                hint="build the index again",
            )
        return index

    @cached_property
    def _halves(self) -> Tensor:
        """The matrix in float16: half as many bytes, which is what a search takes its time for."""
        return self.matrix.half()

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def _places(self) -> dict[tuple[str, str], int]:
        return {key: row for row, key in enumerate(zip(self.item_ids, self.texts, strict=True))}


def _at_least(scores: Tensor, k: int, margin: float = 0.0) -> Tensor:
    """Ascending places of all scores that are at most `margin` below the k-th highest, and perhaps of some lower ones."""
    tops = torch.stack([block.max() for block in scores.split(BLOCK)])  # its k-th highest is at most that of all
    least = torch.topk(tops if k <= len(tops) else scores, k).values[-1]
    return torch.nonzero((scores >= least - margin) & (scores > -torch.inf)).squeeze(1)


def _packed(values: Sequence[str]) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(list(values)).encode()), dtype=torch.uint8)


def _unpacked(values: Tensor) -> tuple[str, ...]:
    return tuple(map(str, json.loads(values.numpy().tobytes())))


def _content(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode() + b"\0")
        sha.update(memoryview(tensors[name].numpy()))  # pyright: ignore[reportArgumentType]  a buffer since Python 3.12's stubs
    return f"sha256:{sha.hexdigest()}"
