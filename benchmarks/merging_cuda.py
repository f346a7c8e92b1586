"""A merge on a CUDA device beside the same on the processor: whether both give the same weights, and where the time goes.

    python benchmarks/merging_cuda.py [--folder DIR] [--layers 28] [--device cuda]

The inputs are those of benchmarks/merging.py, in the page cache. The steps are also timed one after the other, each waited for, over
all weights that have a delta: their sum is what overlapping saves from. Fails if a weight is further than one bfloat16 step from
the processor's. Without a CUDA device it says so and ends well.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from merging import ALPHA, RANK, WEIGHTS, Inputs, make_inputs, step_at, tensors_of
from reccocktail.engine.merging.checkpoint import bytes_of
from reccocktail.engine.merging.standalone import MergeOptions, WeightedFolder, merge_folders
from reccocktail.registry.artifacts.safetensors import read_header
from safetensors import safe_open
from torch import Tensor

BLOCK_ROWS = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="work folder: its base is kept")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured, and nothing is claimed")
        return
    with tempfile.TemporaryDirectory(prefix="reccocktail-bench-", dir=options.folder) as name:
        inputs = make_inputs(options.folder or Path(name), options.layers)
        inputs.warm()
        reached = compare(inputs, Path(name), options.device)
        take_apart(inputs, Path(name) / "written", torch.device(options.device))
    sys.exit(not reached)


def compare(inputs: Inputs, place: Path, device: str) -> bool:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "the processor itself"
    print(f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    adapters = [WeightedFolder(folder, weight) for folder, weight in zip(inputs.adapters, WEIGHTS, strict=True)]
    # makes kernels ready; nobody's first
    merge_folders(inputs.base, adapters, place / "first", MergeOptions(device=device))
    for number, where in enumerate(("cpu", device)):
        out = place / f"{number}-{where}"
        begun = time.perf_counter()
        report = merge_folders(inputs.base, adapters, out, MergeOptions(device=where))
        print(f"{where:8} {time.perf_counter() - begun:7.2f} s; of it {dict(report.seconds)}")
    total, differing, farthest = difference(place / "0-cpu", place / f"1-{device}")
    print(
        f"{differing:,} of {total:,} weights differ ({differing / total:.1e}), by at most {farthest:g} steps (limit: 1)"
    )
    return farthest <= 1


def difference(one: Path, other: Path) -> tuple[int, int, float]:
    """Weights, those that differ, and the farthest in bfloat16 steps at the larger of the two."""
    total = differing = 0
    farthest = 0.0
    files = tensors_of(other)
    for name, path in tensors_of(one).items():
        with safe_open(path, "pt") as left, safe_open(files[name], "pt") as right:
            a, b = left.get_tensor(name), right.get_tensor(name)
        total += a.numel()
        unequal = a != b
        if bool(unequal.any()):
            a, b = a[unequal], b[unequal]
            differing += a.numel()
            apart = (a.double() - b.double()).abs() / step_at(torch.maximum(a.abs(), b.abs()))
            farthest = max(farthest, float(apart.max()))
    return total, differing, farthest


def take_apart(inputs: Inputs, target: Path, device: torch.device) -> None:
    """Every step by itself, over blocks of rows, with one thread."""
    torch.set_num_threads(1)
    clock: dict[str, float] = defaultdict(float)
    pinned = device.type == "cuda"

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        if pinned:
            torch.cuda.synchronize(device)
        clock[step] += time.perf_counter() - begun

    with target.open("wb", buffering=0) as out:
        for path, position, columns, left, right in merged_tensors(inputs, device):
            with path.open("rb", buffering=0) as file:
                file.seek(position)
                raw = torch.empty((BLOCK_ROWS, columns), dtype=torch.bfloat16, pin_memory=pinned)
                for block in left.split(BLOCK_ROWS):
                    raw = raw[: len(block)]
                    with timed("read"):
                        file.readinto(bytes_of(raw))
                    with timed("transfer to the device"):
                        there = raw.to(device, copy=True)
                    with timed("GEMM, addition, rounding"):
                        made = torch.addmm(there.float(), block, right).bfloat16()
                    with timed("transfer back"):
                        raw.copy_(made)
                    with timed("write"):
                        out.write(bytes_of(raw))
    print(f"one step after the other, one thread, {target.stat().st_size / 1e9:.2f} GB of weights with a delta:")
    for step, seconds in clock.items():
        print(f"{step:28} {seconds:7.2f} s  {seconds / sum(clock.values()):6.1%}")
    print(f"{'sum':28} {sum(clock.values()):7.2f} s")


def merged_tensors(inputs: Inputs, device: torch.device) -> Iterator[tuple[Path, int, int, Tensor, Tensor]]:
    """Every weight with a delta: file, position in it, columns, and the two factors of the combined delta on the device."""
    headers = [read_header(path) for path in sorted(inputs.base.glob("*.safetensors"))]
    with ExitStack() as opened:
        adapters = [opened.enter_context(safe_open(a / "adapter_model.safetensors", "pt")) for a in inputs.adapters]
        having = set(adapters[0].keys())
        for header in headers:
            for name, info in header.tensors.items():
                module = f"base_model.model.{name.removesuffix('.weight')}"
                if f"{module}.lora_A.weight" not in having:
                    continue
                right = torch.cat([file.get_tensor(f"{module}.lora_A.weight") for file in adapters])
                left = torch.cat(
                    [
                        file.get_tensor(f"{module}.lora_B.weight") * (weight * ALPHA / RANK)
                        for file, weight in zip(adapters, WEIGHTS, strict=True)
                    ],
                    dim=1,
                )
                yield header.path, header.data_start + info.start, info.shape[1], left.to(device), right.to(device)


if __name__ == "__main__":
    main()
