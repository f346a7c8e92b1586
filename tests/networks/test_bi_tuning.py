"""A bi-tuning as a folder: written, opened again bit by bit, refused with any file damaged, and its index added to."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reccocktail.networks.bert4rec import Bert4Rec, Bert4RecOptions, FrozenBert4Rec
from reccocktail.networks.bi_tuning import BiTuningOrigin, Sides, open_bi_tuning, write_bi_tuning
from reccocktail.networks.laser import Laser, LaserConfig, LaserNet, load_frozen
from reccocktail.networks.m_former import MFormerConfig
from reccocktail.registry.artifacts.allowlist import is_tokenizer
from reccocktail.registry.artifacts.bi_tunings import read_bi_tuning_manifest
from reccocktail.registry.artifacts.bundles import read_manifest
from reccocktail.registry.errors import BaseMismatchError, InvalidArtifactError
from reccocktail.tasks import DomainData, HistoryWriter, Item, TaskError, load_history_template

BASE, OTHER = (f"sha256:{digit * 64}" for digit in "12")
WIDTH = 64
ORIGIN = BiTuningOrigin(BASE, load_history_template("numbered"), "float32", 0.05, 7, ("sha256:data",))
SIZES = MFormerConfig(experts=3, queries=2, layers=2, hidden=12, heads=3, width=8)
CONFIGS = {
    "static": LaserConfig(width=WIDTH, rows=4),
    "m-former": LaserConfig(width=WIDTH, prefix="m-former", rows=2, m_former=SIZES),
}
FILES = ("bert4rec.json", "bert4rec.safetensors", "bundle.json", "index.safetensors", "item_side.safetensors", "user_side.safetensors")  # fmt: skip


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return load_frozen(base, "cpu", "float32")[0]


@pytest.fixture
def catalogue(shop: DomainData) -> list[Item]:
    return list(shop.items.values())[:6]


@pytest.fixture
def write(model: Any, tokenizer: Any, catalogue: list[Item], tmp_path: Path) -> Callable[..., Path]:
    def write(prefix: str, name: str = "bundle") -> Path:
        torch.manual_seed(5)
        config = CONFIGS[prefix]
        nets = [LaserNet.beside(model, config).eval() for _ in range(2)]
        options = Bert4RecOptions(width=8)
        ids = [item.item_id for item in catalogue[:4]]
        recommender = FrozenBert4Rec(Bert4Rec(4, options), options, ids, "sha256:rows") if prefix == "m-former" else None  # fmt: skip
        laser = Laser(model, HistoryWriter(ORIGIN.template, tokenizer), nets[0], recommender)
        matrix = laser.encode([[item] for item in catalogue])
        weights = [{key: value.clone() for key, value in net.state_dict().items()} for net in nets]
        write_bi_tuning(tmp_path / name, ORIGIN, Sides(config, *weights), recommender, catalogue, matrix)
        return tmp_path / name

    return write


@pytest.mark.parametrize("prefix", CONFIGS)
def test_a_bi_tuning_comes_back_bit_by_bit_and_its_index_is_that_of_its_item_side(write, model, tokenizer, catalogue, prefix):  # fmt: skip
    folder = write(prefix)
    files = FILES if prefix == "m-former" else FILES[2:]
    assert {path.name for path in folder.iterdir()} == {*files}
    assert not any(map(is_tokenizer, files))
    found = open_bi_tuning(folder, base_digest=BASE)
    assert found.manifest == read_bi_tuning_manifest(folder)
    told = json.loads((folder / "bundle.json").read_text())
    assert (told["kind"], told["prefix"], told["base"], told["width"], told["rows"]) == ("bi-tuning", prefix, BASE, WIDTH, CONFIGS[prefix].rows)  # fmt: skip
    assert (found.manifest.recommender is None) == (prefix == "static") == (found.manifest.trained_on is None)
    assert found.template == ORIGIN.template
    again = write(prefix, "again")
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in files)
    (again / "LICENSE").touch()
    open_bi_tuning(again)
    histories = [[item] for item in catalogue]
    by_items, by_users = (each(model, tokenizer).encode(histories) for each in (found.items, found.users))
    matrix = found.index.matrix[[found.index.item_ids.index(item.item_id) for item in catalogue]]
    assert torch.allclose(by_items, matrix, rtol=1e-5, atol=1e-7)
    assert (by_users - matrix).abs().max() > 1e-3
    best = found.index.search(by_items[2], 2)
    assert best[0].item_id == catalogue[2].item_id
    assert best[0].score == pytest.approx(1)


def test_only_items_that_the_index_lacks_are_read_by_the_model(write, model, tokenizer, catalogue, shop, monkeypatch):
    found = open_bi_tuning(write("static"))
    laser, read = found.items(model, tokenizer), []
    encode = laser.encode
    monkeypatch.setattr(laser, "encode", lambda histories, **named: read.extend(histories) or encode(histories, **named))  # fmt: skip
    items = {item.item_id: item for item in list(shop.items.values())[:9]}
    index = found.indexed(laser, items)
    assert [item.item_id for history in read for item in history] == sorted(items)[6:]
    assert torch.equal(index.matrix[:6], found.index.matrix)
    whole = encode([[items[item_id]] for item_id in index.item_ids])
    assert torch.allclose(index.matrix, whole, rtol=1e-5, atol=1e-6)
    assert index.digest != found.index.digest == found.manifest.items


def test_each_file_that_is_cut_changed_missing_or_foreign_is_named(write):
    folder = write("m-former")
    rng = random.Random(0)
    for name in FILES:
        path, whole = folder / name, (folder / name).read_bytes()
        place = rng.randrange(len(whole))
        changed = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        for damaged in (whole[: len(whole) // 2], changed, None):
            path.write_bytes(damaged) if damaged is not None else path.unlink()
            with pytest.raises(InvalidArtifactError, match=name) as refused:
                open_bi_tuning(folder)
            assert damaged is not None or refused.value.hint
            path.write_bytes(whole)
    (folder / "model.py").write_text("")
    with pytest.raises(InvalidArtifactError, match=r"model\.py"):
        open_bi_tuning(folder)
    (folder / "model.py").unlink()
    with pytest.raises(BaseMismatchError):
        open_bi_tuning(folder, base_digest=OTHER)
    with pytest.raises(InvalidArtifactError):
        read_manifest(folder)  # of a personalised LoRA
    open_bi_tuning(folder, base_digest=BASE)


def test_a_manifest_that_says_what_the_files_do_not_is_refused(write):
    folder = write("m-former")
    path = folder / "bundle.json"
    told = json.loads(path.read_text())
    for change in (
        {"kind": "lora"}, {"format": 2}, {"more": 1}, {"prefix": "static"}, {"m_former": None}, {"width": 32}, {"trained_on": "x"},
        {"items": OTHER}, {"template": {"name": "x"}}, {"base": OTHER}, {"files": {}}, {"dtype": "bfloat16"},
        {"m_former": told["m_former"] | {"queries": 3}},
    ):  # fmt: skip
        path.write_text(json.dumps(told | change))
        with pytest.raises(InvalidArtifactError):
            open_bi_tuning(folder)


def test_parts_that_do_not_fit_each_other_are_not_written(model, catalogue, tmp_path):
    weights = LaserNet(CONFIGS["m-former"]).state_dict()
    with pytest.raises(TaskError):
        write_bi_tuning(tmp_path / "x", ORIGIN, Sides(CONFIGS["m-former"], weights, weights), None, catalogue, torch.eye(6))  # fmt: skip
    assert not (tmp_path / "x").exists()
