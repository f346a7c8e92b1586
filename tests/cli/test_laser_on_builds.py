"""A bi-tuning on a merged checkpoint of its domain: what it records, what keeps the checkpoint, and by what it is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reccocktail.engine.frozen import Frozen, open_beside
from reccocktail.networks.laser import load_frozen
from reccocktail.registry.catalog.references import BI_TUNING
from reccocktail.registry.catalog.registration import Checks
from reccocktail.registry.errors import BaseMismatchError
from reccocktail.tasks import read_domain

OPTIONS = ("prefix=static", "rows=2", "examples=8", "batch_size=4", "stage1_epochs=1", "stage2_epochs=0", "validation_examples=4", "dtype=float32")  # fmt: skip
TRAIN = ("train", "skin-care", "--trainer", "laser", *(word for option in OPTIONS for word in ("-o", option)))


@pytest.mark.slow
@pytest.mark.usefixtures("warm_children")
def test_a_bi_tuning_is_trained_on_a_build_and_read_by_it(built: Any) -> None:
    newest, average = built("build", "list", "--json").json
    told = built(*TRAIN, "--on", average["id"], "--json")
    assert "pinned" in told.err
    with built.registry() as registry:
        row = registry.adapters.resolve("skin-care", kind=BI_TUNING)
        frozen, base = Frozen.of(registry, row), registry.bases.get("tiny")
        assert (frozen.build, frozen.tree, row.base) == (average["id"], average["digest"], "tiny")
        assert average["id"] in registry.serving.pinned()
        bundle, folder = open_beside(registry, row), frozen.folder(registry)
        assert bundle.manifest.base == frozen.digest != base.digest
        data = read_domain(registry.domains.get("skin-care").data, "skin-care")
        history = [data.items[item_id] for item_id in bundle.index.item_ids[:2]]
        cosines = []
        for checkpoint in (folder, registry.bases.folder(base)):
            query = bundle.users(*load_frozen(checkpoint, "cpu", "float32")).encode([history])[0]
            cosines.append(float(torch.max(bundle.index.matrix @ query)))
        with pytest.raises(BaseMismatchError):
            registry.adapters.add(registry.adapters.folder(row), base=base, role="ingredient", domain="kitchen")
        elsewhere = Checks(beside=frozen.digest)
        registry.adapters.add(
            registry.adapters.folder(row), base=base, role="ingredient", domain="kitchen", checks=elsewhere
        )
    best = built(
        "recommend",
        "skin-care",
        "--adapter",
        row.ref,
        "--history",
        " || ".join(i.title for i in history),
        "-k",
        "1",
        "--json",
    )
    assert best.json["items"][0]["score"] == pytest.approx(cosines[0], abs=1e-5) != pytest.approx(cosines[1], abs=1e-4)
    (index,) = built("build", "request", "skin-care", "--adapter", row.ref, "--wait", "--json").json
    assert (index["inputs"]["on"], index["inputs"]["base"]["digest"]) == (average["id"], frozen.digest)
    assert f"build {average['id']}" in built("build", "show", index["id"], columns=120).out
    (found,) = built("evaluate", row.ref, "--domain", "skin-care", "--task", "full", "--limit", 4, "--json").json[
        "systems"
    ]
    assert found["users"] == 4

    for code, words in (
        ("not_found", ("--on", "skin-care@nowhere")),
        ("wrong_kind", ("--on", index["id"])),
        ("usage", ("--on", newest["id"], "--trainer", "sft")),
    ):
        assert built(*TRAIN[:4], *words, "--json", code=None).json["error"]["code"] == code, words
    other = ("train", "kitchen", *TRAIN[2:], "--on", newest["id"], "--json")
    assert built(*other, code=2).json["error"]["code"] == "usage"
