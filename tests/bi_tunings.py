"""A bi-tuning that needs no training: random rows around a tiny model, and the index that its item side makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from reccocktail.tasks import HistoryWriter, Item, load_history_template
from torch.nn import functional as F  # noqa: N812


@pytest.fixture(scope="session")
def make_bi_tuning() -> Callable[..., Path]:
    """(folder, digest of the base, items, model=None, seed=1, prefix="static"): a bi-tuning with those items in its index.

    Without a `model`, a folder, its rows of width 8 are random and nothing can be embedded by it.
    """
    return _make_bi_tuning


def _make_bi_tuning(
    folder: Path,
    base_digest: str,
    items: Sequence[Item],
    *,
    model: Path | None = None,
    seed: int = 1,
    prefix: Literal["static", "m-former"] = "static",
) -> Path:
    from reccocktail.networks.bert4rec import Bert4Rec, Bert4RecOptions, FrozenBert4Rec
    from reccocktail.networks.bi_tuning import BiTuningOrigin, Sides, write_bi_tuning
    from reccocktail.networks.laser import Laser, LaserConfig, LaserNet, hidden_width, load_frozen
    from reccocktail.networks.m_former import MFormerConfig

    torch.manual_seed(seed)
    recommender = None
    origin = BiTuningOrigin(base_digest, load_history_template("numbered"), "float32", 0.05, seed, ("sha256:data",))
    if model is None:
        config = LaserConfig(width=8, rows=2)
        nets, matrix = [LaserNet(config) for _ in range(2)], F.normalize(torch.randn(len(items), 8))
    else:
        frozen: Any
        frozen, tokenizer = load_frozen(model, "cpu", "float32")
        sizes = MFormerConfig(experts=3, queries=2, layers=2, hidden=12, heads=3, width=8)
        config = LaserConfig(width=hidden_width(frozen), rows=2)
        if prefix == "m-former":
            config = LaserConfig(width=hidden_width(frozen), prefix=prefix, rows=2, m_former=sizes)
            options = Bert4RecOptions(width=8, length=3)
            ids = [item.item_id for item in items[1:]]
            recommender = FrozenBert4Rec(Bert4Rec(len(ids), options), options, ids, "sha256:rows")
        nets = [LaserNet.beside(frozen, config).eval() for _ in range(2)]
        writer = HistoryWriter(origin.template, tokenizer)
        matrix = Laser(frozen, writer, nets[0], recommender).encode([[item] for item in items])
    weights = [{key: value.clone() for key, value in net.state_dict().items()} for net in nets]
    write_bi_tuning(folder, origin, Sides(config, *weights), recommender, items, matrix)
    return folder
