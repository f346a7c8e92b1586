"""Where a model's parameters lie in its checkpoint, whose names are not always those of the modules."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where a module's parameter, or a part of it, lies in the checkpoint.

    `expert` is the index in the first dimension of the module's 3-D parameter that lies there, None for a 2-D one; `rows`
    the rows [start, end) of that matrix, in the module's layout, that `tensor` holds, None for all; `index` the first
    index in `tensor` where the checkpoint too keeps experts fused; `transposed` that what is stored is the transpose.
    """

    tensor: str
    expert: int | None = None
    rows: tuple[int, int] | None = None
    index: int | None = None
    transposed: bool = False
