"""How often the true next item is among the candidates that are retrieved, and how long it takes, for some data folders.

    python benchmarks/retrieval.py DIR... [--users 1000] [--count 100] [--items 30000]

Per folder and share of TF-IDF: the part of the test users (and of the cold ones) whose next item is retrieved, of those who do not
have it already; popularity counts what was taken before the last item of each user. At the end the seconds that it takes to index a
made-up catalogue of `--items` items and to retrieve once.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

from reccocktail.tasks import DomainData, History, Item, Retriever, examples, read_domain, sample
from reccocktail.tasks.popularity import known

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
SEED = 42


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", metavar="DIR")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--count", type=int, default=100, help="how many items are retrieved")
    parser.add_argument("--items", type=int, default=30_000, help="of the made-up catalogue")
    options = parser.parse_args()
    print("data, split, users:", *(f"{share:>8.0%}" for share in SHARES))
    for folder in options.folders:
        data = read_domain(folder)
        retriever = Retriever(data, taken=known(data, "test"))
        for split in ("test", "cold"):
            asked = [e for e in sample(examples(data, split), options.users, SEED) if e.target not in e.history]
            recalls = [recall(data, retriever, asked, options.count, share) for share in SHARES] if asked else []
            print(data.name, split, f"{len(asked)}:", *(f"{found:8.3f}" for found in recalls), flush=True)
    catalogue = made_up(options.items)
    begun = time.perf_counter()
    retriever = Retriever(catalogue)
    indexed = time.perf_counter()
    for history in catalogue.sequences:
        retriever.retrieve([catalogue.items[item_id] for item_id in history.items], options.count)
    each = (time.perf_counter() - indexed) / len(catalogue.sequences)
    print(f"{options.items} items: {indexed - begun:.2f} s to index, {each * 1000:.1f} ms to retrieve once")


def recall(data: DomainData, retriever: Retriever, asked: list, count: int, share: float) -> float:
    hits = 0
    for example in asked:
        history = [data.items[item_id] for item_id in example.history]
        hits += example.target in {item.item_id for item in retriever.retrieve(history, count, tfidf_share=share)}
    return hits / len(asked)


def made_up(items: int, users: int = 100) -> DomainData:
    """Titles of eight to twelve words, common words in most of them, and histories of ten items."""
    rng = random.Random(SEED)
    words = [f"word{n}" for n in range(20_000)]
    weights = [1 / (n + 10) for n in range(len(words))]
    titles = [" ".join(rng.choices(words, weights, k=rng.randint(8, 12))) for _ in range(items)]
    made = [Item(f"i{n:06d}", title) for n, title in enumerate(titles)]
    taken = [History(f"u{n}", tuple(item.item_id for item in rng.sample(made, 10))) for n in range(users)]
    return DomainData.of("made-up", made, taken)


if __name__ == "__main__":
    main()
