"""A mix written as one adapter that PEFT loads: exact by concatenation, or cut to a rank by SVD with the error reported.

PEFT's scaling is 1 for every module of the result (`lora_alpha` is the rank), so the factors alone say what the delta is,
also to readers that know no `rank_pattern`. Each thread works on one tensor at a time.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

from ...registry.artifacts.facts import BaseFacts
from ...registry.artifacts.inspect import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ...tasks.torch_threads import one_torch_thread
from ..errors import MergeError
from .adapter_mix import AdapterMix
from .adapter_plan import AdapterPlan
from .adapter_tensors import Entry, Made, entries
from .checkpoint import Shard, bytes_of, write_from
from .plan import Mix
from .reports import AdapterReport, AdapterTensorReport


def write_adapter(
    base: BaseFacts,
    mix: Mix,
    *,
    rank: int | None = None,
    base_folder: Path | None = None,
    threads: int | None = None,
) -> AdapterReport:
    """Write `adapter_config.json` and `adapter_model.safetensors` into the folder `mix.out`, which has neither.

    `rank` None keeps every delta exactly; a number bounds the rank of each. `mix.dtype` None is float32. `base_folder` is needed
    for what depends on the base's weights: DoRA, tensors and tokens that were trained whole, methods on dense deltas. The folder
    is left half-written when something fails: give a staging folder. Raises MergeError for what one adapter cannot hold, RecipeError.
    """
    with ExitStack() as opened:
        plan = AdapterPlan(AdapterMix(base, mix, rank, base_folder, opened))
        planned = list(entries(plan))
        reports: list[AdapterTensorReport] = []
        made = opened.enter_context(closing(_made(planned, threads or min(8, os.cpu_count() or 1))))
        with Shard(mix.out / ADAPTER_WEIGHTS, [info for entry in planned for info in entry.infos]) as file:
            for entry, (tensors, report) in made:
                for info, tensor in zip(entry.infos, tensors, strict=True):
                    assert tuple(tensor.shape) == info.shape, info.name
                    if not bool(tensor.isfinite().all()):
                        raise MergeError(
                            f"{info.name} does not stay finite in {mix.dtype or 'float32'}",
                            hint="check the weights of the mix, or choose bfloat16 or float32",
                        )
                    write_from(file.fd, bytes_of(tensor.contiguous()), file.position(info.name))
                if report is not None:
                    reports.append(report)
            os.fsync(file.fd)
        _write_config(mix.out / ADAPTER_CONFIG, plan.config())
    notes = tuple(f"{part.folder.name}: {note}" for part in mix.parts for note in part.facts.notes)
    return AdapterReport(tuple(reports), sum(info.nbytes for info in file.tensors.values()), notes)


def _made(planned: Sequence[Entry], threads: int) -> Generator[tuple[Entry, Made]]:
    """Each entry and what it is, in order; so many are made side by side, and no more are held.

    Each is made by one thread alone, since how many share in a factorisation shows in its last bits.
    """
    waiting: deque[tuple[Entry, Future[Made]]] = deque()
    with one_torch_thread(), ThreadPoolExecutor(threads) as pool:
        try:
            for entry in planned:
                waiting.append((entry, pool.submit(entry.make)))
                if len(waiting) == threads:
                    first, made = waiting.popleft()
                    yield first, made.result()
            while waiting:
                first, made = waiting.popleft()
                yield first, made.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write_config(path: Path, config: Mapping[str, object]) -> None:
    with path.open("xb") as file:
        file.write((json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
