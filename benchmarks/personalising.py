"""What a LoRA per user costs: reading a batch of different users, coefficients for many of them, and one user's LoRA as a file.

    python benchmarks/personalising.py [--rounds 5] [--batch 4] [--tokens 280] [--users 1000]

The model has the shape of SmolLM2-135M and random weights, with 8 meta-LoRAs of rank 8 on q and v. Reading is compared with PEFT's LoRA
of rank 8, which all rows share; ways alternate, and seconds are the process's own on one thread, so that what else the machine does
counts less. Personalising a user is everything behind the imports: opening the bundle, coefficients, and writing the adapter.
Fails if reading takes over 1.15 times as long, coefficients over half a second, or personalising over one second.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from reccocktail.engine.merging.standalone import MergeOptions
from reccocktail.engine.personalising import personalise
from reccocktail.engine.recipes import Output
from reccocktail.networks.bundle import BundleOrigin, Retrieval, open_bundle, write_bundle
from reccocktail.networks.click_fields import ClickVocabulary
from reccocktail.networks.din import Din, DinOptions, FrozenDin
from reccocktail.networks.gated_lora import Form, GatedLora, GatedLoraConfig
from reccocktail.tasks import ClickOptions, ClickRow, ClickUser, Item, ItemEmbeddings, RatedItem, load_click_template
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
    max_position_embeddings=2048,
)
ITEMS = 1_682  # of MovieLens-100K
RATIO, COEFFICIENTS, PERSONALISED = 1.15, 0.5, 1.0
BASE = f"sha256:{'0' * 64}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4, help="rows, each of another user")
    parser.add_argument("--tokens", type=int, default=280, help="of a row")
    parser.add_argument("--users", type=int, default=1000, help="whose coefficients are computed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(SHAPE).eval().requires_grad_(False)
    reached = [read(model, asked.rounds, asked.batch, asked.tokens)]
    with tempfile.TemporaryDirectory(prefix="reccocktail-bench-") as place:
        model.to(torch.bfloat16).save_pretrained(Path(place) / "base")
        rows = write_sample_bundle(model, Path(place) / "bundle", asked.users)
        reached += [coefficients(Path(place), rows, asked.rounds), one_user(Path(place), rows[0], asked.rounds)]
    sys.exit(not all(reached))


@torch.inference_mode()
def read(model: Any, rounds: int, batch: int, tokens: int) -> bool:
    """A forward pass of the batch with logits of the last token."""
    other: Any = LlamaForCausalLM(SHAPE).eval()
    other.load_state_dict(model.state_dict(), assign=True)
    shared = get_peft_model(other, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])).eval()
    ids, c = torch.randint(SHAPE.vocab_size, (batch, tokens)), torch.randn(batch, 256)
    nets = {form: made_net(model, form) for form in ("sum", "factor")}

    def gated(form: str) -> None:
        with nets[form].applied(model, nets[form].coefficients(c)):
            model(ids, logits_to_keep=1, use_cache=False)

    ways: dict[str, Callable[[], object]] = {
        "one LoRA for all, PEFT": lambda: shared(ids, logits_to_keep=1, use_cache=False),
        "no LoRA": lambda: model(ids, logits_to_keep=1, use_cache=False),
        "a LoRA per user, sum": lambda: gated("sum"),
        "a LoRA per user, factor": lambda: gated("factor"),
    }
    print(f"SmolLM2-135M's shape, {batch} rows of {tokens} tokens, float32, one thread; medians of {rounds}")
    seconds = alternating(ways, rounds)
    least = seconds["one LoRA for all, PEFT"]
    for what, each in seconds.items():
        print(f"{what:28} {each:8.2f} s {each / least:8.2f} x one LoRA for all")
    worst = max(each / least for what, each in seconds.items() if "per user" in what)
    return report(f"at most {RATIO} x", worst <= RATIO)


def coefficients(place: Path, rows: list[ClickRow], rounds: int) -> bool:
    """Of one row of each user."""
    bundle = open_bundle(place / "bundle")
    c = bundle.recommender.user_vectors(rows)
    with torch.inference_mode():
        ways = {
            "gates alone": lambda: bundle.net.coefficients(c),
            "recommender and gates": lambda: bundle.coefficients(rows),
        }
        seconds = alternating(ways, rounds)
    print(f"\ncoefficients of {len(rows)} users, {len(bundle.net.modules_gated)} modules and 8 meta-LoRAs")
    for what, each in seconds.items():
        print(f"{what:28} {each:8.3f} s")
    return report(f"gates at most {COEFFICIENTS} s", seconds["gates alone"] <= COEFFICIENTS)


def one_user(place: Path, row: ClickRow, rounds: int) -> bool:
    def write(number: int) -> None:
        bundle = open_bundle(place / "bundle")
        alpha = bundle.coefficients([row])[0]
        personalise(
            place / "base",
            bundle.net,
            alpha,
            place / f"{number}",
            MergeOptions(output=Output(format="adapter"), threads=1),
        )

    numbers = iter(range(1000))
    seconds = alternating({"one user to an adapter": lambda: write(next(numbers))}, rounds)
    taken = seconds["one user to an adapter"]
    print(f"\n{'one user to an adapter':28} {taken:8.2f} s")
    return report(f"at most {PERSONALISED} s", taken <= PERSONALISED)


def alternating(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median of each way's seconds, after one that does not count."""
    found: dict[str, list[float]] = {what: [] for what in ways}
    for number in range(rounds + 1):
        for what, do in ways.items():
            began = time.process_time()
            do()
            if number:
                found[what].append(time.process_time() - began)
    return {what: median(each) for what, each in found.items()}


def report(limit: str, reached: bool) -> bool:
    print(f"{limit}:", "reached" if reached else "NOT REACHED")
    return reached


def made_net(model: Any, form: Form) -> GatedLora:
    net = GatedLora.beside(model, GatedLoraConfig(form=form)).eval().requires_grad_(False)
    for b in net.b:
        b.data.normal_(std=0.02)
    return net


def write_sample_bundle(model: Any, folder: Path, users: int) -> list[ClickRow]:
    """A bundle with an untrained recommender; a row of each user, who has rated 80 items."""
    rng = random.Random(0)
    items = {f"i{n}": Item(f"i{n}", f"Film {n} {rng.choice('abcdefgh')}", {"genres": [rng.choice("uvw")]}) for n in range(ITEMS)}  # fmt: skip
    rated = [tuple(RatedItem(item, float(rng.randint(1, 5))) for item in rng.sample(sorted(items), 80)) for _ in range(users)]  # fmt: skip
    rows = [ClickRow.candidate(ClickUser(f"u{n}", {"age": str(n % 60)}, own), f"i{n % ITEMS}") for n, own in enumerate(rated)]  # fmt: skip
    vocabulary = ClickVocabulary.of(rows, items)
    recommender = FrozenDin(Din(vocabulary, DinOptions()), vocabulary, BASE)
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 512)).astype(np.float32)
    origin = BundleOrigin(BASE, load_click_template("yes-no"), ClickOptions(), Retrieval(by="similar"), 0)
    write_bundle(folder, origin, made_net(model, "sum"), recommender, ItemEmbeddings(tuple(items), vectors))
    return rows


if __name__ == "__main__":
    main()
