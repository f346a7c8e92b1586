"""Recommenders over item ids that are trained once and then frozen: a vector for each item of a history, and scores of all items.

Laser's router reads the vectors (Laser, arXiv 2409.01605); full ranking reads the scores.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..tasks import DomainData, Split, TaskError
from ..tasks.clicks import digest_of
from ..tasks.popularity import known

FORMAT = 1
AT_ONCE = 256  # histories of an inference batch
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ValidationError)


@dataclass(frozen=True)
class ItemStates:
    """`values` [histories, places, width] in float32, 0 at padding; `mask` [histories, places], where an item is. Padding stands to the left."""

    values: Tensor
    mask: Tensor


@dataclass(frozen=True)
class IdSequences:
    """What a recommender over ids may learn from: per user items by their numbers, newest last.

    The last of each is held out to stop by; `items` are those of the other places, and the only ones with a number. `digest` names the data and what was left out.
    """

    items: tuple[str, ...]
    lessons: tuple[tuple[str, ...], ...]
    held_out: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, data: DomainData, split: Split) -> IdSequences:
        """Of `test` and `cold`: lessons are training positions, and the validation position is held out. Raises TaskError without lessons."""
        taken = [each for each in known(data, split) if len(each) > 1]
        if not taken:
            raise TaskError(f"{data.name} has no histories to train on", hint="users need at least 3 interactions")
        lessons = tuple(each[:-1] for each in taken)
        items = tuple(sorted(set(chain.from_iterable(lessons))))
        part = "validation" if split == "validation" else "test"
        return cls(items, lessons, tuple(each[-1] for each in taken), digest_of([data.digest, part]))


class FrozenIdEncoder(ABC):
    """A trained recommender in evaluation mode, which nothing changes any more.

    It computes in float64, so that what is rounded to float32 does not depend on which histories share a batch. Items that it was
    not trained on are all read as one, the unknown item, which training has seen. `trained_on` names data and split.
    """

    KIND: ClassVar[str]
    width: int
    length: int

    def __init__(self, model: nn.Module, items: Sequence[str], trained_on: str) -> None:
        self.items, self.trained_on = tuple(items), trained_on
        self._model: Any = model.double().eval().requires_grad_(False)
        self._places = {item_id: place for place, item_id in enumerate(self.items)}

    def knows(self, item_id: str) -> bool:
        return item_id in self._places

    @torch.inference_mode()
    def states(self, histories: Sequence[Sequence[str]]) -> ItemStates:
        """A vector per item of each history, of the newest `length` items if there are more."""
        rows = self._numbered(histories)
        mask = rows != 0
        values = torch.cat([self._states(some) for some in rows.split(AT_ONCE)])
        return ItemStates((values * mask[..., None]).float(), mask)

    @torch.inference_mode()
    def scores(self, histories: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """[histories, items that it knows], a logit that the item comes next."""
        some = self._numbered(histories).split(AT_ONCE)
        return torch.cat([self._scores(trimmed(rows)) for rows in some]).float().numpy()

    def over(self, catalogue: Iterable[str]) -> EncoderScorer:
        """Scores of a catalogue of ids, in its order."""
        return EncoderScorer(self, catalogue)

    def place(self, item_id: str) -> int | None:
        """Of an item among those that it knows."""
        return self._places.get(item_id)

    def _numbered(self, histories: Sequence[Sequence[str]]) -> Tensor:
        """[histories, places]: the numbers of the newest items, padded with 0 on the left; there is one place at least."""
        newest = [[self._number(item_id) for item_id in history[-self.length :]] for history in histories]
        places = max(1, *map(len, newest)) if newest else 1
        rows = [[0] * (places - len(each)) + each for each in newest]
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), places)

    @abstractmethod
    def _number(self, item_id: str) -> int:
        """Of an item, or of the unknown one; 0 is padding."""

    @abstractmethod
    def _states(self, rows: Tensor) -> Tensor:
        """[histories, places] -> [histories, places, width]."""

    @abstractmethod
    def _scores(self, rows: Tensor) -> Tensor:
        """[histories, places] -> [histories, items that it knows]."""

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """Sizes and training, as JSON has them."""

    @classmethod
    @abstractmethod
    def _built(cls, options: Any, weights: dict[str, Tensor], items: Sequence[str], trained_on: str) -> Self:
        """Of what was saved."""

    def save(self, folder: Path) -> None:
        """Weights in float32 in `KIND.safetensors`, everything else in `KIND.json`; equal ones have equal bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.float().contiguous() for name, value in self._model.named_parameters()}
        save_file(weights, folder / f"{self.KIND}.safetensors")
        content = {"format": FORMAT, "kind": self.KIND, "trained_on": self.trained_on, "options": self._options(), "items": self.items}  # fmt: skip
        text = json.dumps(content, sort_keys=True, ensure_ascii=False) + "\n"
        (folder / f"{self.KIND}.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote. Raises TaskError for a file that is missing or damaged, or for weights of other sizes."""
        try:
            content = json.loads((folder / f"{cls.KIND}.json").read_text(encoding="utf-8"))
            if (content["format"], content["kind"]) != (FORMAT, cls.KIND):
                raise ValueError(f"{content['kind']!r} of format {content['format']!r} is not {cls.KIND!r} of {FORMAT}")
            weights = load_file(folder / f"{cls.KIND}.safetensors")
            return cls._built(content["options"], weights, content["items"], content["trained_on"])
        except UNREADABLE as error:
            raise TaskError(
                f"{folder} holds no {cls.KIND} that can be read: {error}",
                hint=f"it needs {cls.KIND}.safetensors and {cls.KIND}.json as they were written",
            ) from error


def trimmed(rows: Tensor) -> Tensor:
    """[histories, places], padded with 0 on the left -> as few places as the longest of them has, and one at least."""
    empty = int((rows != 0).any(dim=0).int().argmax()) if rows.any() else rows.shape[1] - 1
    return rows[:, empty:]


class EncoderScorer:
    """An encoder's scores of a catalogue; items that it does not know are never offered: −∞."""

    def __init__(self, encoder: FrozenIdEncoder, catalogue: Iterable[str]) -> None:
        self._encoder = encoder
        places = [encoder.place(item_id) for item_id in catalogue]
        self._size = len(places)
        self._columns = [column for column, place in enumerate(places) if place is not None]
        self._known = [place for place in places if place is not None]

    def scores(self, histories: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """[histories, catalogue]."""
        found = np.full((len(histories), self._size), -np.inf, dtype=np.float32)
        found[:, self._columns] = self._encoder.scores(histories)[:, self._known]
        return found


def load_parameters(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Parameters as `save` names them; each once where several are tied. Raises ValueError unless they are the model's."""
    wanted = dict(model.named_parameters())
    if wanted.keys() != weights.keys():
        raise ValueError(
            f"the weights are of {len(weights)} tensors, {len(wanted.keys() - weights.keys())} are missing"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            if parameter.shape != weights[name].shape:
                raise ValueError(f"{name} is of {tuple(weights[name].shape)}, and {tuple(parameter.shape)} is wanted")
            parameter.copy_(weights[name])
