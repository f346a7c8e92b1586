"""Popularity against RecBole's own: its `Pop` model, its split and its evaluator, on the same data.

    python benchmarks/popularity_oracle.py [DATA]

DATA is a data set folder (docs/data.md); unless told, the MovieLens-100K that RecBole's wheel carries. RecBole is no dependency
of ours. It imports from a folder of its own, made once, which leaves the environment as it is:

    pip install --no-deps --target /tmp/recbole recbole==1.2.1 colorlog colorama thop tabulate texttable tensorboard psutil \\
        plotly narwhals protobuf absl-py grpcio markdown
    PYTHONPATH=/tmp/recbole python benchmarks/popularity_oracle.py

Each user's last interaction is the target, all earlier ones are known, and every item that the user has not taken is a candidate
(RecBole: split LS test_only, order TO, mode full). RecBole gets the interactions as our reader orders them, numbered in place of
timestamps, because it and we order equal timestamps differently. Where several items are equally popular RecBole's place for
the target is whatever `torch.topk` makes of it; so its model is asked twice, once with the target half an interaction below its
equals, which is how we count, and once half above: the two must equal ours, and bracket RecBole as it is.

RecBole's `Pop` counts an item once per training batch in which it occurs, however often that is; batches of one make that a
count of interactions, and take most of the minute that this needs.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from reccocktail.tasks import (
    DomainData,
    Question,
    examples,
    hit_rate,
    load_template,
    mrr,
    ndcg,
    rank_by_popularity,
    read_domain,
)

DEPTHS = (1, 5, 10)
TOLERANCE = 1e-6
NAME = "oracle"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    folder = parser.parse_args().data
    try:
        import recbole
    except ImportError:
        sys.exit("RecBole is not there; --help says how to get it")
    data = read_domain(folder or Path(recbole.__file__).parent / "dataset_example" / "ml-100k")
    ours = {"ours": measured(our_ranks(data, against=True)), "ours, ties for": measured(our_ranks(data, against=False))}
    with tempfile.TemporaryDirectory(prefix="reccocktail-oracle-") as place:
        theirs = recboles(data, Path(place))
    print(f"{len(data.by_user)} users, {len(data.titled)} items, {sum(map(len, data.by_user.values()))} interactions")
    print(f"{'':28}" + "".join(f"{metric:>12}" for metric in ours["ours"]))
    for name, figures in (ours | theirs).items():
        print(f"{name:28}" + "".join(f"{figure:12.8f}" for figure in figures.values()))
    apart = max(
        abs(ours[mine][metric] - theirs[other][metric])
        for mine, other in (("ours", "RecBole, ties against"), ("ours, ties for", "RecBole, ties for"))
        for metric in ours["ours"]
    )
    bracketed = all(
        ours["ours"][metric] - TOLERANCE <= theirs["RecBole"][metric] <= ours["ours, ties for"][metric] + TOLERANCE
        for metric in ours["ours"]
    )
    print(f"largest difference: {apart:.1e} (limit: {TOLERANCE:.0e}); RecBole as it is lies between: {bracketed}")
    sys.exit(apart > TOLERANCE or not bracketed)


THEIR_NAMES = {f"{our}@{k}": f"{their}@{k}" for our, their in (("HR", "hit"), ("NDCG", "ndcg")) for k in DEPTHS} | {
    "MRR@10": "mrr@10"
}
SHIFTS = {"RecBole": 0.0, "RecBole, ties against": -0.5, "RecBole, ties for": 0.5}  # of the target, in interactions


def our_ranks(data: DomainData, *, against: bool) -> list[int]:
    """Ranks among all items that the user has not taken; with `against` false, ties are counted for the target."""
    template = load_template("next-title")
    ranks = []
    for example in examples(data, "test"):
        taken = set(example.history)
        offered = tuple(item_id for item_id in data.titled if item_id not in taken)
        titles = tuple(data.items[item_id].title for item_id in offered)
        question = Question(template, offered, (), titles, example, offered.index(example.target))
        ranks.append(question)
    rankings = rank_by_popularity(data, ranks, "test")
    if against:
        return [ranking.rank for ranking in rankings]
    return [
        sum(score > ranking.scores[question.target_index] for score in ranking.scores)
        for question, ranking in zip(ranks, rankings, strict=True)
    ]


def measured(ranks: list[int]) -> dict[str, float]:
    found = {f"HR@{k}": hit_rate(ranks, k) for k in DEPTHS} | {f"NDCG@{k}": ndcg(ranks, k) for k in DEPTHS}
    return found | {"MRR@10": mrr([rank if rank < 10 else None for rank in ranks])}


def recboles(data: DomainData, place: Path) -> dict[str, dict[str, float]]:
    """What RecBole's trainer and evaluator measure of its Pop, as it is and with every target moved."""
    import numpy as np
    import torch

    for name, kind in {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}.items():
        setattr(np, name, kind)  # RecBole was written for NumPy 1
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.general_recommender.pop import Pop
    from recbole.utils import get_trainer

    class Shifted(Pop):
        targets: Any
        shift = 0.0

        def full_sort_predict(self, interaction: Any) -> Any:
            users = interaction[self.USER_ID]
            scores = super().full_sort_predict(interaction).view(len(users), -1).clone()
            scores[torch.arange(len(users)), self.targets[users]] += self.shift / self.max_cnt.item()
            return scores.view(-1)

    write(data, place / NAME)
    settings = {
        "data_path": str(place),
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": "timestamp",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"LS": "test_only"}, "order": "TO", "group_by": "user", "mode": "full"},
        "metrics": ["Hit", "NDCG", "MRR"],
        "topk": list(DEPTHS),
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 12,
        "epochs": 1,
        "train_batch_size": 1,
        "train_neg_sample_args": None,
        "use_gpu": False,
        "show_progress": False,
        "log_wandb": False,
        "checkpoint_dir": str(place / "saved"),
        "save_dataset": False,
    }
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    words, sys.argv = sys.argv, sys.argv[:1]  # RecBole reads the command line
    try:
        config = Config(model=Shifted, dataset=NAME, config_dict=settings)
    finally:
        sys.argv = words
    dataset = create_dataset(config)
    training, _, test = data_preparation(config, dataset)
    model = Shifted(config, training.dataset)
    model.targets = torch.zeros(training.dataset.user_num, dtype=torch.long)
    held_out = test.dataset.inter_feat
    model.targets[held_out["user_id"]] = held_out["item_id"]
    same_split(data, test.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(training, saved=False, show_progress=False)
    found = {}
    for name, model.shift in SHIFTS.items():
        metrics = trainer.evaluate(test, load_best_model=False, show_progress=False)
        found[name] = {metric: float(metrics[THEIR_NAMES[metric]]) for metric in THEIR_NAMES}
    return found


def write(data: DomainData, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{NAME}.inter").open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, taken in data.by_user.items():
            file.writelines(f"{user}\t{item}\t{place}\n" for place, item in enumerate(taken))


def same_split(data: DomainData, test: Any) -> None:
    """Stop unless RecBole holds out what we hold out."""
    users, items = (test.id2token(field, test.inter_feat[field].numpy()) for field in ("user_id", "item_id"))
    expected = {example.user_id: example.target for example in examples(data, "test")}
    if dict(zip(users, items, strict=True)) != expected:
        sys.exit("RecBole's split is another one")


if __name__ == "__main__":
    main()
