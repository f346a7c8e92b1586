"""What it costs to register files: the store against `sha256sum FILE && cp FILE DEST`, medians of several runs.

    python benchmarks/store_add.py [--size 150] [--rounds 5] [--folder DIR]

The store makes its copy durable, `cp` does not; so `cp` followed by `sync -d` is measured as well.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from reccocktail.registry import Store

SMALL = 200  # folders of two small files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=150, help="MiB of the large file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write: the disk to be measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        large(Path(place), options.size << 20, options.rounds)
        small(Path(place), options.rounds)


def large(place: Path, size: int, rounds: int) -> None:
    source = place / "source"
    source.mkdir()
    file, copy = source / "adapter_model.safetensors", place / "copy"
    times: dict[str, list[float]] = {"store": [], "sha256sum && cp": [], "sha256sum && cp && sync": []}
    for _ in range(rounds):  # in turn, so that a busy moment hits all of them
        with file.open("wb") as out:
            for _ in range(0, size, 1 << 20):
                out.write(os.urandom(1 << 20))
        subprocess.run(["sync", source], check=True)
        times["store"].append(clocked(Store.create(place / "store").add_folder, source))
        shutil.rmtree(place / "store")
        for name, command in (("sha256sum && cp", "true"), ("sha256sum && cp && sync", 'sync -d "$2"')):
            shell = ["sh", "-c", f'sha256sum "$1" && cp "$1" "$2" && {command}', "sh", file, copy]
            times[name].append(clocked(subprocess.check_output, shell))
            copy.unlink()
    print(f"{size >> 20} MiB, medians of {rounds}:")
    for name, found in times.items():
        ratio = median(times["store"]) / median(found)
        print(f"  {name:26}{median(found) * 1e3:9.1f} ms   store takes {ratio:.2f} times as long")


def small(place: Path, rounds: int) -> None:
    store, means = Store.create(place / "small"), []
    for turn in range(rounds):
        folders = [place / f"{turn}-{number}" for number in range(SMALL)]
        for number, folder in enumerate(folders):
            folder.mkdir()
            (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "turn": turn, "number": number}))
            (folder / "adapter_model.safetensors").write_bytes(os.urandom(20_000))
        means.append(clocked(add_all, store, folders) / SMALL)
    print(f"two small files, mean of {SMALL} folders, median of {rounds}:")
    with_known = count_syncs(store.add_folder, folder)
    (folder / "adapter_config.json").write_text("{}")
    print(
        f"  {median(means) * 1e3:.2f} ms, {count_syncs(store.add_folder, folder)} fsyncs; {with_known} for a known one"
    )


def add_all(store: Store, folders: list[Path]) -> None:
    for folder in folders:
        store.add_folder(folder)


def count_syncs(action: Callable[..., object], *arguments: object) -> int:
    calls, fsync = [], os.fsync
    os.fsync = lambda handle: calls.append(fsync(handle))  # type: ignore[assignment]
    try:
        action(*arguments)
    finally:
        os.fsync = fsync
    return len(calls)


def clocked(action: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
