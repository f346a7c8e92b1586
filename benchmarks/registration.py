"""What it costs to register an adapter: `adapters.add`, and the whole command, against `sha256sum FILE && cp FILE DEST`.

    python benchmarks/registration.py [--size 150] [--rounds 5] [--folder DIR]

Registering reads and checks the header, scans every value for NaN and infinities, hashes, copies, makes the copy durable and
writes the row; `cp` makes nothing durable, so `cp` followed by `sync -d` is measured as well. The files are in the page cache.
A second part puts folders of two small files into the store, where what takes time is making them durable.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from reccocktail.registry import Base, Registry, Settings
from reccocktail.registry.store import create_store
from safetensors.numpy import save_file

HIDDEN, RANK = 1024, 512
MODULE_BYTES = 2 * HIDDEN * RANK * 4
SMALL = 200  # folders of two small files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=150, help="MiB of the adapter")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write: the disk to be measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reccocktail-bench-", dir=options.folder) as name:
        reached = measure(Path(name), (options.size << 20) // MODULE_BYTES, options.rounds)
        measure_small(Path(name), options.rounds)
    sys.exit(not reached)


def measure(place: Path, modules: int, rounds: int) -> bool:
    settings = Settings.load(home=place / "home", cwd=place, environ={"HOME": str(place)})
    names = [f"model.layers.{n}.self_attn.q_proj" for n in range(modules)]
    with Registry.create(settings) as registry:
        base = registry.bases.add("base", make_base(place / "base", names), source="org/base")
        registry.domains.add("beauty")
        rows = []
        for number in range(rounds):
            first = make_adapter(place / "first", names, 2 * number)
            second = make_adapter(place / "second", names, 2 * number + 1)
            rows.append(one_round(registry, base, first, second))
            shutil.rmtree(first)
            shutil.rmtree(second)
        size = registry.adapters.resolve("beauty").bytes
    print(f"an adapter of {size / 1e6:.0f} MB, medians of {rounds}, warm cache")
    taken = {what: median(row[what] for row in rows) for what in rows[0]}
    least = taken["sha256sum && cp"]
    for what, seconds in taken.items():
        print(f"{what:28} {1000 * seconds:8.1f} ms   {seconds / least:5.2f} x sha256sum && cp")
    reached = taken["adapters.add"] <= 2 * least
    print("half the speed of sha256sum && cp, at least:", "reached" if reached else "NOT REACHED")
    return reached


def measure_small(place: Path, rounds: int) -> None:
    store, means = create_store(place / "small"), []
    for turn in range(rounds):
        folders = [make_small(place / f"small-{turn}-{number}") for number in range(SMALL)]
        means.append(timed(lambda folders=folders: [store.add_folder(folder) for folder in folders]) / SMALL)
    last = make_small(place / "small-last")
    new, known = (count_syncs(lambda: store.add_folder(last)) for _ in range(2))
    print(f"a folder of two small files into the store, mean of {SMALL}, median of {rounds}")
    print(f"{1000 * median(means):.2f} ms, {new} fsyncs; {known} for a folder that is there already")


def count_syncs(work: Callable[[], object]) -> int:
    calls, fsync = [], os.fsync
    os.fsync = lambda handle: calls.append(fsync(handle))  # type: ignore[assignment]
    try:
        work()
    finally:
        os.fsync = fsync
    return len(calls)


def one_round(registry: Registry, base: Base, first: Path, second: Path) -> dict[str, float]:
    """Seconds for each way; `first` is registered in this process and `second` by the command."""
    file, copy = str(first / "adapter_model.safetensors"), first.with_name("copy")
    plain = [["sha256sum", file], ["cp", file, str(copy)]]
    ours = [str(Path(sys.executable).with_name("reccocktail")), "--home", str(registry.settings.home), "adapter"]
    taken = {"sha256sum && cp": timed(lambda: run(*plain))}
    copy.unlink()
    taken["sha256sum && cp && sync -d"] = timed(lambda: run(*plain, ["sync", "-d", str(copy)]))
    copy.unlink()
    taken["adapters.add"] = timed(lambda: registry.adapters.add(first, base=base, role="ingredient", domain="beauty"))
    taken["reccocktail adapter add"] = timed(
        lambda: run([*ours, "add", str(second), "--base", base.name, "--domain", "beauty"])
    )
    taken["reccocktail adapter show"] = timed(lambda: run([*ours, "show", "beauty"]))  # what starting costs
    return taken


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run(*commands: list[str]) -> None:
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)


def make_base(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    weight = np.zeros((HIDDEN, HIDDEN), "f2")
    save_file({f"{name}.weight": weight for name in names}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return folder


def make_adapter(folder: Path, names: list[str], seed: int) -> Path:
    folder.mkdir()
    drawn = np.random.default_rng(seed)
    factors = {}
    for name in names:
        factors[f"base_model.model.{name}.lora_A.weight"] = drawn.random((RANK, HIDDEN), "f4")
        factors[f"base_model.model.{name}.lora_B.weight"] = drawn.random((HIDDEN, RANK), "f4")
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}))
    return folder


def make_small(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "from": folder.name}))
    (folder / "adapter_model.safetensors").write_bytes(os.urandom(20_000))
    return folder


if __name__ == "__main__":
    main()
