"""What it costs to read and split a million interactions: seconds and peak memory of a fresh process, by format.

    python benchmarks/reading.py [--interactions 1000000] [--folder DIR] [--text 400] [--rounds 2]

Made-up users with histories of 3 to 37 items, popular items taken more often, timestamps in no order. Each format is written
once, then read in a child process of its own, which also makes the examples of all four splits. The files are in the page
cache. The limits are 10 seconds and 1 GB; reviews carry `--text` characters of text that reading passes over.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SECONDS, MEGABYTES = 10.0, 1000.0
ITEMS = 50_000
START = 1_600_000_000
SPLITS = ("train", "validation", "test", "cold")

Row = tuple[str, str, int, int]  # user, item, time, rating


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to write")
    parser.add_argument("--text", type=int, default=400, help="characters of a review's text")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(read_and_split(options.child)))
        return
    with tempfile.TemporaryDirectory(prefix="reccocktail-bench-", dir=options.folder) as name:
        reached = measure(Path(name), options.interactions, options.text, options.rounds)
    sys.exit(not reached)


def measure(place: Path, interactions: int, text: int, rounds: int) -> bool:
    print(
        f"{interactions:,} interactions, {ITEMS:,} items, best of {rounds}; limits {SECONDS:g} s and {MEGABYTES:g} MB"
    )
    print(f"{'format':20} {'MB':>7} {'read s':>8} {'split s':>8} {'whole s':>8} {'peak MB':>8}   examples")
    reached, counts = True, set()
    for what, write in WRITERS.items():
        folder = place / what
        folder.mkdir()
        write(folder, list(rows(interactions)), text)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        found = min((one_round(folder) for _ in range(rounds)), key=lambda round_: round_["whole"])
        print(
            f"{found['format']:20} {size:7.0f} {found['read']:8.2f} {found['split']:8.2f} {found['whole']:8.2f} {found['peak']:8.0f}"
            f"   {', '.join(f'{count:,} {split}' for split, count in found['examples'].items())}"
        )
        reached &= found["whole"] <= SECONDS and found["peak"] <= MEGABYTES
        counts.add(tuple(found["examples"].values()))
        if found["interactions"] != interactions or len(counts) != 1:
            raise SystemExit("the formats do not agree on what they hold")
    print("both limits, by every format:", "kept" if reached else "NOT KEPT")
    return reached


def one_round(folder: Path) -> dict[str, Any]:
    """What a fresh process tells of itself, and how long it took from its start to its end."""
    begun = time.perf_counter()
    child = subprocess.run([sys.executable, __file__, "--child", str(folder)], check=True, capture_output=True)
    whole = time.perf_counter() - begun
    return json.loads(child.stdout) | {"whole": whole}


def read_and_split(folder: Path) -> dict[str, Any]:
    begun = time.perf_counter()
    from reccocktail.tasks import examples, read_domain

    data = read_domain(folder)
    read = time.perf_counter() - begun
    made = {split: examples(data, split) for split in SPLITS}
    split = time.perf_counter() - begun - read
    return {
        "format": data.format,
        "read": read,
        "split": split,
        "peak": peak_bytes() / 1e6,
        "interactions": sum(len(history.items) for history in data.sequences),
        "examples": {name: len(found) for name, found in made.items()},
    }


def peak_bytes() -> int:
    """Of this process alone: on Linux, `ru_maxrss` of a child begins with the memory of its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rows(interactions: int) -> Iterator[Row]:
    """Seeded; a user's times differ, so that the order of the rows is of no account."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 38, interactions // 3)
    users = np.repeat(np.arange(len(lengths)), lengths)[:interactions]
    rng.shuffle(users)
    items = (ITEMS * rng.random(interactions) ** 3).astype(int)
    times = START + rng.permutation(interactions)
    ratings = rng.integers(1, 6, interactions)
    for user, item, moment, stars in zip(users.tolist(), items.tolist(), times.tolist(), ratings.tolist(), strict=True):
        yield f"A{user:013X}", f"B{item:09d}", moment, stars


def title(item: int) -> str:
    return f'Item {item}, in "quotes" and of a usual length for a title in a shop'


def write_csv(folder: Path, found: list[Row], text: int) -> None:
    with (folder / "interactions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["user_id", "item_id", "timestamp", "rating"])
        table.writerows(found)
    with (folder / "items.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["item_id", "title"])
        table.writerows((f"B{item:09d}", title(item)) for item in range(ITEMS))


def write_parquet(folder: Path, found: list[Row], text: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    users, items, times, ratings = zip(*found, strict=True)
    table = pa.table({"user_id": users, "item_id": items, "timestamp": times, "rating": ratings})
    pq.write_table(table, folder / "interactions.parquet")
    ids = [f"B{item:09d}" for item in range(ITEMS)]
    pq.write_table(
        pa.table({"item_id": ids, "title": [title(item) for item in range(ITEMS)]}), folder / "items.parquet"
    )


def write_jsonl(folder: Path, found: list[Row], text: int) -> None:
    histories: dict[str, list[Row]] = {}
    for row in found:
        histories.setdefault(row[0], []).append(row)
    with (folder / "sequences.jsonl").open("w") as file:
        for user, taken in histories.items():
            _, items, times, ratings = zip(*taken, strict=True)
            line = {"user_id": user, "items": items, "timestamps": times, "ratings": ratings}
            file.write(json.dumps(line) + "\n")
    with (folder / "items.jsonl").open("w") as file:
        for item in range(ITEMS):
            file.write(json.dumps({"item_id": f"B{item:09d}", "title": title(item)}) + "\n")


def write_amazon(folder: Path, found: list[Row], text: int) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(5000)]
    book = " ".join(rng.choices(words, k=200_000))
    with gzip.open(folder / "reviews_Toys_5.json.gz", "wt", compresslevel=6) as file:
        for user, item, moment, stars in found:
            start = rng.randrange(len(book) - text)
            said = book[start : start + text]
            review = {"reviewerID": user, "asin": item, "reviewerName": "N. N.", "helpful": [0, 0], "reviewText": said}
            review |= {"overall": float(stars), "summary": "Fine", "unixReviewTime": moment, "reviewTime": "01 1, 2014"}
            file.write(json.dumps(review) + "\n")
    with gzip.open(folder / "meta_Toys.json.gz", "wt", compresslevel=1) as file:
        for item in range(ITEMS):
            record = {"asin": f"B{item:09d}", "title": title(item), "categories": [["Toys", "Games"]], "brand": "Bic"}
            file.write(f"{record | {'related': {'also_bought': [f'B{n:09d}' for n in range(20)]}}}\n")


WRITERS: dict[str, Callable[[Path, list[Row], int], None]] = {
    "csv": write_csv,
    "parquet": write_parquet,
    "jsonl": write_jsonl,
    "amazon": write_amazon,
}


if __name__ == "__main__":
    main()
