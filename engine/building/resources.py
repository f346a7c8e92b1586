"""What a build will take of a machine, known before it starts: from the rows for placing it, from headers where it is made.

Both are estimates from above. Adapting measures its own need (`memory`), which a placement cannot wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...registry import Build, Registry
from ...registry.artifacts.facts import BaseFacts
from ...registry.catalog.references import INDEX
from ..errors import InsufficientResourcesError

if TYPE_CHECKING:
    from ..merging.plan import Mix

PROCESS_BYTES = 700 << 20  # an interpreter with torch, transformers and the engine, and the blocks that threads work on
ACTIVATIONS = 1.5  # of the model's bytes, while coefficients are searched: a rule of thumb
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Needs:
    """Bytes of disk and of memory."""

    disk: int
    memory: int


def needs_of(registry: Registry, builds: Sequence[Build], *, remote: bool = False) -> Needs:
    """Of builds over one base that are made in one pass. `remote`: by a machine that may have to fetch the base first."""
    base = registry.bases.get(builds[0].base)
    results = adapters = rows = 0
    searching = False
    for build in builds:
        searching = searching or "prompts" in build.inputs
        for entry in build.inputs["adapters"]:
            adapters += registry.adapters.resolve(entry["ref"], base=base.name, kind=None).bytes
        if build.kind == INDEX:
            rows += 4 * build.inputs["items"]["count"] * build.inputs["items"]["width"]
            continue
        output = build.recipe.get("output", {})
        if output.get("format", "checkpoint") == "checkpoint":
            results += base.parameters * _BYTES.get(output.get("dtype") or base.dtype, 4)
    memory = PROCESS_BYTES + 4 * adapters  # factors are widened to float32 and kept for the pass
    if searching or rows:
        memory += int(base.parameters * 4 * ACTIVATIONS) + 2 * rows
    return Needs(disk=results + rows + adapters + (base.bytes if remote else 0), memory=memory)


def expect_memory(base: BaseFacts, mixes: Sequence[Mix], threads: int) -> None:
    """Raises NoRoomError where a pass needs more memory than is free, with both figures. Beside what the process has already.

    Methods that look at whole deltas hold one matrix per adapter, their sum and the weight itself, in float32; others a block.
    """
    from ..adapting.memory import available, total
    from ..methods import METHODS

    factors = sum(
        path.stat().st_size for mix in mixes for part in mix.parts for path in part.folder.glob("*.safetensors")
    )
    needed = 2 * factors
    largest = max((tensor.info.elements for tensor in base.tensors.values()), default=0)
    whole = [len(mix.parts) + 2 for mix in mixes if METHODS[mix.method].kind != "factors"]
    needed += threads * max(whole, default=0) * 4 * largest
    free = available("cpu")
    if free is not None and needed > free:
        raise InsufficientResourcesError(
            f"merging takes up to {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free",
            hint="fewer builds at once (--group), fewer threads (OMP_NUM_THREADS), or a machine with more memory",
            retryable=needed < (total() or 0),
        )
