"""DIN against torch-rechub's own, on the same rows.

    pip install --no-deps --target /tmp/rechub torch-rechub==0.9.0
    PYTHONPATH=/tmp/rechub python benchmarks/din_oracle.py DATA [--split user | time] [--epochs 10] [--seed 42]

DATA is the folder of a domain with ratings. torch-rechub is no dependency of ours; it imports from a folder of its own, and needs pandas,
scikit-learn and tqdm. Its DIN gets what it has fields for: user, profile values, the target, and the newest 60 rated items in two
sequences, liked and not liked, that attend to the target; ours has title words and ratings too. Both have embeddings of 16 and three
layers of 256, learn by the same rows in batches of 256, and keep the epoch with the best validation ROC AUC. Fails if ours is more than
.01 below.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from reccocktail.networks.click_fields import ClickBatch, ClickEncoder, ClickVocabulary
from reccocktail.networks.din import train_din
from reccocktail.tasks import ClickOptions, ClickRow, click_data, read_domain
from sklearn.metrics import roc_auc_score
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.basic.initializers import RandomNormal
from torch_rechub.models.ranking import DIN

WIDTH, LENGTH, BATCH, PATIENCE, MARGIN = 16, 60, 256, 2, 0.01
Fields = Mapping[str, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", choices=("user", "time"), default="user")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=42)
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    clicks = click_data(read_domain(asked.data, asked.data.name), ClickOptions(by=asked.split))
    ours = roc_auc_score(labels(clicks.test), train_din(clicks).scores(clicks.test))
    vocabulary = ClickVocabulary.of(clicks.train, clicks.items)
    train, validation, test = (fields(vocabulary, rows) for rows in (clicks.train, clicks.validation, clicks.test))
    model = fitted(made(vocabulary), train, labels(clicks.train), (validation, labels(clicks.validation)), asked.epochs)
    theirs = roc_auc_score(labels(clicks.test), scores(model, test))
    print(f"{len(clicks.test)} test rows, by {asked.split}: ROC AUC {ours:.4f}, torch-rechub {theirs:.4f}")
    sys.exit(ours < theirs - MARGIN)


def made(vocabulary: ClickVocabulary) -> Any:
    """torch-rechub's DIN over our numbering."""
    initial = RandomNormal(0, 0.1)
    users = [SparseFeature("user", len(vocabulary.users) + 1, WIDTH, initializer=initial)]
    users += [
        SparseFeature(f"profile_{name}", len(values) + 1, WIDTH, initializer=initial)
        for name, values in vocabulary.profile.items()
    ]
    items = len(vocabulary.items) + 1
    target = SparseFeature("target", items, WIDTH, padding_idx=0, initializer=initial)
    taken = [
        SequenceFeature(name, items, WIDTH, pooling="concat", shared_with="target", padding_idx=0)
        for name in ("liked", "disliked")
    ]
    towers = {"dims": [256, 256, 256], "dropout": 0.1}
    return DIN(users, taken, [target, target], towers, {"dims": [64]})


def fields(vocabulary: ClickVocabulary, rows: Sequence[ClickRow]) -> Fields:
    """What torch-rechub reads of rows; an item is in one of two sequences, and the other has padding in its place."""
    batch: ClickBatch = ClickEncoder(vocabulary, LENGTH).encode(rows)
    known = torch.zeros(len(vocabulary.items) + 1, dtype=torch.bool)
    known[list(vocabulary.trained_items)] = True
    history, target = (torch.where(known[each], each, 0) for each in (batch.history, batch.target))
    least = 1 + sum(rating < 4 for rating in vocabulary.ratings)  # ratings are numbered from 1
    liked = batch.ratings >= least
    profile = {f"profile_{name}": batch.profile[:, place] for place, name in enumerate(vocabulary.profile)}
    sequences = {"liked": torch.where(liked, history, 0), "disliked": torch.where(liked, 0, history)}
    return {"user": batch.user, "target": target} | sequences | profile


def fitted(model: Any, train: Fields, likes: torch.Tensor, exam: tuple[Fields, torch.Tensor], epochs: int) -> Any:
    """By Adam, with the weights of the best epoch."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
    best, kept, waited = 0.0, copy.deepcopy(model), 0
    for epoch in range(epochs):
        model.train()
        for part in torch.randperm(len(likes)).split(BATCH):
            loss = torch.nn.functional.binary_cross_entropy(model(some(train, part)), likes[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        found = float(roc_auc_score(exam[1], scores(model, exam[0])))
        print(f"torch-rechub, epoch {epoch + 1}: validation ROC AUC {found:.4f}", flush=True)
        waited = 0 if found > best else waited + 1
        if found > best:
            best, kept = found, copy.deepcopy(model)
        if waited >= PATIENCE:
            break
    return kept


@torch.inference_mode()
def scores(model: Any, rows: Fields) -> torch.Tensor:
    model.eval()
    return torch.cat([model(some(rows, part)) for part in torch.arange(len(rows["user"])).split(1024)])


def some(rows: Fields, part: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: values[part] for name, values in rows.items()}


def labels(rows: Sequence[ClickRow]) -> torch.Tensor:
    return torch.tensor([float(bool(row.label)) for row in rows])


if __name__ == "__main__":
    main()
