"""A bi-tuning on a merged checkpoint of its domain: what it records, what keeps the checkpoint, and by what it is asked."""

from __future__ import annotations

import io
import json
import re
import runpy
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from reccocktail.engine.frozen import Frozen, open_beside
from reccocktail.networks.bi_tuning import open_bi_tuning
from reccocktail.networks.laser import load_frozen
from reccocktail.registry.catalog.references import BI_TUNING
from reccocktail.registry.catalog.registration import Checks
from reccocktail.registry.errors import BaseMismatchError
from reccocktail.tasks import read_domain
from reccocktail.trainers.runs import base_digest

OPTIONS = ("prefix=static", "rows=2", "examples=8", "batch_size=4", "stage1_epochs=1", "stage2_epochs=0", "validation_examples=4", "dtype=float32")  # fmt: skip
TRAIN = ("train", "skin-care", "--trainer", "laser", *(word for option in OPTIONS for word in ("-o", option)))


@pytest.mark.slow
@pytest.mark.usefixtures("warm_children")
def test_a_bi_tuning_is_trained_on_a_build_and_read_by_it(built: Any) -> None:
    newest, average = built("build", "list", "--json").json
    told = built(*TRAIN, "--on", average["id"], "--json")
    assert all(word in told.err for word in ("pinned", "validation_ndcg_10", "2 steps", "recommend skin-care --user"))
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


@pytest.fixture
def bundle(built: Any, make_bi_tuning: Callable[..., Path], tmp_path: Path) -> Path:
    """The folder of a bi-tuning on the build by `average` of `skin-care`."""
    average = built("build", "list", "--json").json[1]
    with built.registry() as registry:
        model = registry.store.folder(average["digest"])
        items = read_domain(registry.domains.get("skin-care").data, "skin-care").items
        some = [item for item in items.values() if item.title][:12]
        return make_bi_tuning(tmp_path / "bundle", base_digest(model), some, model=model)


def test_the_build_of_a_bundle_is_found_by_its_manifest_when_it_is_added(built: Any, bundle: Path) -> None:
    average = built("build", "list", "--json").json[1]["id"]
    wrong = built("adapter", "add", bundle, "--base", "tiny", "--domain", "kitchen", "--json", code=None).json["error"]
    assert wrong["code"] == "base_mismatch"
    assert "build list --domain kitchen" in wrong["hint"]
    added = built("adapter", "add", bundle, "--base", "tiny", "--domain", "skin-care", "--json").json
    assert added["context"]["on"]["build"] == average
    assert any(average in note for note in added["notes"])
    with built.registry() as registry:
        row = registry.adapters.resolve(f"skin-care@v{added['version']}", kind=BI_TUNING)
        frozen = Frozen.of(registry, row)
        assert (frozen.build, open_beside(registry, row).manifest.base) == (average, frozen.digest)
        assert average in registry.serving.pinned()
    assert not built("adapter", "add", bundle, "--base", "tiny", "--domain", "skin-care", "--json").json["created"]


def test_the_card_of_a_bundle_on_a_build_names_its_repository_and_its_program_loads_that(
    built: Any, bundle: Path, loopback_hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    average = built("build", "list", "--json").json[1]["id"]
    ref = f"skin-care@v{built('adapter', 'add', bundle, '--base', 'tiny', '--domain', 'skin-care', '--json').json['version']}"

    def card(*words: str) -> str:
        built("publish", ref, "--to", "acme/laser", *words)
        return loopback_hub.files("acme/laser")["README.md"].decode()

    assert all(word in card() for word in (average, "on no Hub", "recommend.py . BASE"))
    built("publish", average, "--to", "acme/merged")
    told = card()
    assert all(word in told for word in (average, "base_model: acme/merged", "recommend.py . acme/merged"))
    for repo in ("laser", "merged"):
        for name, content in loopback_hub.files(f"acme/{repo}").items():
            (tmp_path / repo / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / repo / name).write_bytes(content)
    index = open_bi_tuning(bundle).index
    with built.registry() as registry:
        items = read_domain(registry.domains.get("skin-care").data, "skin-care").items
    history = [items[item_id] for item_id in index.item_ids[:3]]
    plain = [{"title": i.title, **{k: v if isinstance(v, str) else ", ".join(v) for k, v in i.fields.items()}} for i in history]  # fmt: skip
    (tmp_path / "history.json").write_text(json.dumps(plain))
    (program,) = re.findall(r"```python\n(.*?)```", told, re.DOTALL)
    (tmp_path / "recommend.py").write_text(program)
    places = [str(tmp_path / name) for name in ("recommend.py", "laser", "merged", "history.json")]
    monkeypatch.setattr("sys.argv", places)
    with redirect_stdout(io.StringIO()) as said:
        runpy.run_path(places[0], run_name="__main__")
    words = ("recommend", "skin-care", "--adapter", ref, "--history", " || ".join(i.title for i in history), "--json")
    ours = built(*words).json["items"]
    theirs = [line.split() for line in said.getvalue().splitlines()]
    assert [name for name, _ in theirs] == [item["item_id"] for item in ours]
    assert [float(score) for _, score in theirs] == pytest.approx([item["score"] for item in ours], abs=1e-5)
