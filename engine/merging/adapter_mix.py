"""The adapters of a mix that becomes one adapter, open for reading, and the base where its weights are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ...registry.artifacts.facts import BaseFacts
from ...registry.artifacts.inspect import ADAPTER_CONFIG
from ...registry.artifacts.safetensors import Header, TensorInfo, read_header
from ...registry.artifacts.tensor_names import Place
from ...registry.strict_json import read_object
from ..errors import MergeError
from ..methods import METHODS
from .checkpoint import FILE_DTYPES, TORCH_DTYPES, bytes_of, read_into, torch_dtype
from .deltas import AdapterFile
from .plan import Change, MatrixSize, Mix, check_weights, weights_at

AS_CHECKPOINT = "write a checkpoint instead (--format checkpoint)"


class AdapterMix:
    """The adapters of a mix, how they are combined, and the base where its weights are needed."""

    def __init__(
        self,
        base: BaseFacts,
        mix: Mix,
        rank: int | None,
        base_folder: Path | None,
        opened: ExitStack,
    ) -> None:
        parts = mix.parts
        if not parts:
            raise MergeError("a mix needs at least one adapter")
        if rank is not None and rank < 1:
            raise MergeError(f"rank {rank} leaves nothing of the adapters", hint="give a rank of 1 or more")
        self.base, self.parts, self.rank, self.options = base, parts, rank, mix.options
        self.base_folder = base_folder
        self.method = METHODS[mix.method]
        check_weights(parts, self.method)
        self.dtype = FILE_DTYPES[mix.dtype or "float32"]
        grown = next((part for part in parts if part.facts.vocabulary is not None), None)
        if grown:
            raise MergeError(
                f"{grown.folder.name} changes the vocabulary to {grown.facts.vocabulary} tokens, which needs the resized base",
                hint=AS_CHECKPOINT,
            )
        self.files = [opened.enter_context(AdapterFile(part.folder)) for part in parts]
        self.configs = [read_object(part.folder / ADAPTER_CONFIG) for part in parts]

    def info(self, name: str, shape: Sequence[int]) -> TensorInfo:
        """A tensor of the file to be; where it lies follows from those before it."""
        return TensorInfo(name, self.dtype, tuple(shape), 0, 0)

    def weights(self, uses: Sequence[Change]) -> tuple[float, ...]:
        """What every part counts for where these change something."""
        return weights_at(self.parts, uses)

    @property
    def is_one_alone(self) -> bool:
        """Whether one adapter is to stay what it is."""
        if len(self.parts) != 1 or self.method.kind != "factors":
            return False
        weight = self.parts[0].weight
        return all(w == 1.0 for w in weight.values()) if isinstance(weight, Mapping) else weight == 1.0

    def rounded(self, tensor: Tensor) -> Tensor:
        return tensor.to(TORCH_DTYPES[self.dtype])

    def called(self, use: Change) -> str:
        return self.parts[use.part].folder.name

    def exact(self, part: int, info: TensorInfo) -> Tensor:
        """A tensor of an adapter, in float64."""
        return _tensor(self.files[part].header, info).double()

    def stored(self, name: str) -> Tensor:
        """A tensor of the base, in float32; for a head that is tied and not stored, the embedding."""
        assert self.base_folder is not None
        tensor = self.base.tensors[self._stored_as(name)]
        return _tensor(read_header(self.base_folder / tensor.file), tensor.info).float()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.tensors[self._stored_as(name)].info.shape

    def _stored_as(self, name: str) -> str:
        if name in self.base.tensors:
            return name
        if self.base.embedding is None:
            raise MergeError(f"the base has no tensor {name}")
        return self.base.embedding

    def needs_base(self, use: Change, name: str, what: str) -> None:
        if self.base_folder is None:
            raise MergeError(
                f"{self.called(use)}: {name} {what}, and mixing that takes the base's weights",
                hint="give the base's folder, too",
            )

    def place(self, name: str, uses: Sequence[Change]) -> Place:
        """The one whole tensor of the base that holds a parameter. Raises MergeError if it is spread over several."""
        found = [place for use in uses for place in use.places]
        place = found[0] if found else Place(name)
        if any(other != place for other in found) or (place.expert, place.rows, place.index) != (None, None, None):
            raise MergeError(
                f"{name} is no tensor of its own in the base's checkpoint, and so its delta cannot become part of an adapter",
                hint=AS_CHECKPOINT,
            )
        return place

    def combined(self, place: Place, uses: Sequence[Change], old: Tensor) -> Tensor:
        """The dense delta of a whole stored tensor, float32, of its shape."""
        matrix = old.reshape(-1, old.shape[-1]) if old.dim() > 1 else old.reshape(1, -1)
        size = MatrixSize(len(matrix), len(matrix), matrix.shape[1])
        deltas: list[Tensor | None] = [None] * len(self.parts)
        for use in uses:
            term = use.at(place).term(self.files[use.part], size, lambda start, stop: matrix[start:stop])
            delta = term.delta(matrix, 0).reshape(old.shape)
            before = deltas[use.part]
            deltas[use.part] = delta if before is None else before + delta
        return self.method.combine(place.tensor, old, deltas, self.weights(uses), self.options)


def _tensor(header: Header, info: TensorInfo) -> Tensor:
    """A whole tensor of a file, in its own dtype."""
    flat = torch.empty(info.elements, dtype=torch_dtype(info))
    with header.path.open("rb") as file:
        read_into(file.fileno(), bytes_of(flat), header.data_start + info.start)
    return flat.reshape(info.shape)
